"""Dense against pruned in one runtime: speed, memory, size and agreement, and the ideal beside them.

Machines drift, so the two are timed in turn and compared round by round. The ideal speed-up is the dense
model's work over the pruned one's: FLOPs for a prompt, bytes of weights for a generated token.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import cross_entropy

from stages.architecture import Architecture, ModelShape
from stages.export.benchmark.comparison import Comparison, Figures, Spread
from stages.export.benchmark.memory import peak_memory
from stages.export.benchmark.runtimes import PyTorch, Runtime, open_runtime
from stages.families import FAMILIES
from stages.flops import prompt_flops
from stages.sample.timing import in_turn


@dataclass(frozen=True)
class Load:
    """What is asked of every model.

    `prompt` is processed at once, then `continuation` token by token; both `rounds` times after a
    round that does not count, on so many threads; folders on `device`. `windows` (count, L) of the corpus
    `text` give perplexity and agreement.
    """

    prompt: Sequence[int]
    continuation: Sequence[int]
    rounds: int
    windows: Tensor
    text: str
    threads: int
    device: str = "cpu"


@dataclass(frozen=True)
class Artifact:
    """A folder or GGUF file, the architecture in it, and the folder of the same weights."""

    path: Path
    architecture: Architecture
    folder: Path


class References:
    """What folders compute of the windows in PyTorch: logits, once for all that is compared with them.

    They are kept in files of `scratch` (float32, windows * L * vocabulary * 4 bytes a folder).
    """

    def __init__(self, load: Load, scratch: Path) -> None:
        self.windows, self.threads, self._device = load.windows, load.threads, load.device
        self._scratch = scratch
        self._files: dict[Path, list[Path]] = {}

    def logits(self, folder: Path) -> Iterator[Tensor]:
        """(L, vocabulary) of every window."""
        if folder not in self._files:
            self._files[folder] = self._computed(folder, self._scratch / f"logits-{len(self._files)}")
        for file in self._files[folder]:
            yield torch.from_numpy(np.load(file))

    def _computed(self, folder: Path, place: Path) -> list[Path]:
        model, files = PyTorch(folder, self.threads, self._device), []
        place.mkdir(parents=True)
        for index, window in enumerate(self.windows):
            files.append(place / f"{index}.npy")
            np.save(files[-1], model.logits(window.tolist()).numpy())
        return files


def compare(
    runtime: str,
    weights: str,
    dense: Artifact,
    pruned: Artifact,
    shape: ModelShape,
    load: Load,
    references: References,
) -> Comparison:
    """Measure two artifacts of one runtime side by side."""
    both = (dense, pruned)
    agreements = [_agreement(artifact, references) for artifact in both]
    context, threads, device = len(load.prompt) + len(load.continuation), load.threads, load.device
    with ThreadPoolExecutor() as pool:  # at once: how long it takes does not matter here
        waiting = [
            pool.submit(peak_memory, a.path, threads, len(load.prompt), len(load.continuation), device)
            for a in both
        ]
    memories = [each.result() for each in waiting]
    runtimes = [open_runtime(artifact.path, threads, context, device=device) for artifact in both]
    prefill, decode = _times(runtimes, load)
    figures = [
        Figures(
            artifact.architecture.total_parameters(shape),
            size_bytes(artifact.path),
            memory,
            Spread.of([len(load.prompt) / s for s in prefill[i]]),
            Spread.of([len(load.continuation) / s for s in decode[i]]),
            *agreement,
        )
        for i, (artifact, memory, agreement) in enumerate(zip(both, memories, agreements, strict=True))
    ]
    flops = [prompt_flops(shape, artifact.architecture.widths, len(load.prompt)) for artifact in both]
    read = [bytes_a_token(artifact.path, shape) for artifact in both]
    return Comparison(
        runtime=runtime,
        weights=weights,
        dense=figures[0],
        pruned=figures[1],
        prefill_speedup=Spread.of([d / p for d, p in zip(*prefill, strict=True)]),
        decode_speedup=Spread.of([d / p for d, p in zip(*decode, strict=True)]),
        ideal_prefill=flops[0] / flops[1],
        ideal_decode=read[0] / read[1],
        launching=_launching(runtimes[1], prefill[1], decode[1]),
    )


def _launching(model: Runtime, prefill: Sequence[float], decode: Sequence[float]) -> tuple[float, float]:
    """The parts of the seconds of prefill and decoding in which Python did not wait for a GPU."""
    if not isinstance(model, PyTorch) or not model.waited_s:
        return 0.0, 0.0
    waited = [model.waited_s[i::2][1:] for i in (0, 1)]  # the first round does not count
    return 1 - sum(waited[0]) / sum(prefill), 1 - sum(waited[1]) / sum(decode)


def bytes_a_token(path: Path, shape: ModelShape) -> int:
    """Bytes of weights that generating a token reads: all but the embedding, unless it is the head too."""
    embedding = "token_embd.weight" if path.is_file() else FAMILIES[shape.family].embedding
    sizes = tensor_bytes(path)
    return sum(sizes.values()) - (0 if shape.tied_embeddings else sizes[embedding])


def tensor_bytes(path: Path) -> dict[str, int]:
    """Bytes of every tensor of a folder's safetensors or of a GGUF file."""
    if path.is_file():
        return {tensor.name: int(tensor.n_bytes) for tensor in GGUFReader(path).tensors}
    sizes: dict[str, int] = {}
    for part in sorted(path.glob("*.safetensors")):
        with safe_open(part, framework="pt") as file:
            sizes |= {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118
    return sizes


def size_bytes(path: Path) -> int:
    """The bytes of a GGUF file, or of a folder's weights."""
    return sum(f.stat().st_size for f in ([path] if path.is_file() else path.glob("*.safetensors")))


def _times(models: Sequence[Runtime], load: Load) -> tuple[list[list[float]], list[list[float]]]:
    """Seconds of prefill and of decoding, each a list of rounds for each model, taken in turn."""

    def once(index: int) -> tuple[float, float]:
        start = time.perf_counter()
        models[index].prefill(load.prompt)
        middle = time.perf_counter()
        models[index].decode(load.continuation)
        return middle - start, time.perf_counter() - middle

    found = in_turn(len(models), load.rounds, once)
    return [[prefill for prefill, _ in own] for own in found], [
        [decode for _, decode in own] for own in found
    ]


def _agreement(artifact: Artifact, references: References) -> tuple[float, float, float]:
    """Perplexity, KL divergence a token from the folder of the same weights, largest logit difference."""
    windows, model = references.windows, None
    if artifact.path != artifact.folder:
        model = open_runtime(artifact.path, references.threads, windows.shape[1], every_logit=True)
    loss, divergence, difference = 0.0, 0.0, 0.0
    for window, expected in zip(windows, references.logits(artifact.folder), strict=True):
        found = expected if model is None else model.logits(window.tolist())
        loss += float(cross_entropy(found[:-1], window[1:]))
        if model is not None:
            divergence += kl(expected, found)
            difference = max(difference, float((expected - found).abs().max()))
    return math.exp(loss / len(windows)), divergence / len(windows), difference


def kl(expected: Tensor, found: Tensor) -> float:
    """Mean KL divergence in nats of the distributions of logits (L, vocabulary), expected from found."""
    total = 0.0
    for ours, theirs in zip(expected.split(64), found.split(64), strict=True):  # float64 of few at once
        p, q = ours.double().log_softmax(-1), theirs.double().log_softmax(-1)
        total += float((p.exp() * (p - q)).sum())
    return total / len(expected)
