"""The two programs that run an export, behind one interface: PyTorch a folder, llama.cpp a GGUF file.

Each is imported where it is used: a process that measures one's memory must not hold the other.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Runtime(Protocol):
    """A loaded model with a cache of one sequence."""

    def prefill(self, tokens: Sequence[int]) -> None:
        """Forget what was, and process a prompt as far as the logits of its last token."""

    def decode(self, tokens: Sequence[int]) -> None:
        """Continue the sequence token by token, with the logits of each."""

    def logits(self, tokens: Sequence[int]) -> Tensor:
        """Logits (L, vocabulary) in float32 after each of the tokens of a new sequence."""


class PyTorch:
    """The model in transformers, in the dtype of the folder's weights, on the CPU or a GPU."""

    def __init__(self, folder: Path, threads: int, device: str = "cpu") -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from stages.families import register
        from stages.progress import without_bars

        torch.set_num_threads(threads)
        register(folder)
        with without_bars():
            model: Any = AutoModelForCausalLM.from_pretrained(folder)
        self.model = model.eval().to(device)
        self._device = device
        self.waited_s: list[float] = []
        """Seconds in which a GPU still worked when Python had asked for everything, of each prompt and each
        continuation: none, and Python is what was timed."""
        self._torch = torch
        self._cache: Any = None

    def prefill(self, tokens: Sequence[int]) -> None:
        self._cache = None
        self._step(tokens)
        self._wait()

    def decode(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self._step([token])
        self._wait()

    def _step(self, tokens: Sequence[int]) -> None:
        with self._torch.inference_mode():
            given = self._torch.tensor([tokens], device=self._device)
            out = self.model(given, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = out.past_key_values

    def _wait(self) -> None:
        """A GPU works on while Python goes on."""
        if self._device == "cuda":
            start = time.perf_counter()
            self._torch.cuda.synchronize()
            self.waited_s.append(time.perf_counter() - start)

    def logits(self, tokens: Sequence[int]) -> Tensor:
        with self._torch.inference_mode():
            given = self._torch.tensor([tokens], device=self._device)
            found: Tensor = self.model(given, use_cache=False).logits
        return found[0].float().cpu()


class LlamaCpp:
    """llama.cpp on the CPU through llama-cpp-python.

    `context` is the longest sequence; `every_logit` keeps the logits of all tokens, which `logits` needs.
    """

    def __init__(self, path: Path, threads: int, context: int, every_logit: bool = False) -> None:
        from llama_cpp import Llama

        self.model: Any = Llama(
            str(path), n_ctx=context, n_batch=context, n_threads=threads, n_threads_batch=threads,
            n_gpu_layers=0, flash_attn=True, logits_all=every_logit, verbose=False,
        )  # fmt: skip

    def prefill(self, tokens: Sequence[int]) -> None:
        self.model.reset()
        self.model.eval(list(tokens))

    def decode(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self.model.eval([token])

    def logits(self, tokens: Sequence[int]) -> Tensor:
        import torch

        self.prefill(tokens)
        return torch.from_numpy(self.model.scores[: len(tokens)].copy())


def open_runtime(
    path: Path, threads: int, context: int, every_logit: bool = False, device: str = "cpu"
) -> Runtime:
    """Load a folder with PyTorch, onto that device; a GGUF file with llama.cpp, on the CPU."""
    if path.is_dir():
        return PyTorch(path, threads, device)
    return LlamaCpp(path, threads, context, every_logit)


def has_llama_cpp() -> bool:
    return importlib.util.find_spec("llama_cpp") is not None
