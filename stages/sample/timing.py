"""Time a prompt and the tokens after it: transformers models of any widths, in turn.

Imports torch and transformers where it needs them: `sample` starts without, unless milliseconds are
limited.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stages.architecture import LayerWidth, ModelShape
from stages.config.budget import Latency
from stages.families import FAMILIES
from stages.files import InputError
from stages.progress import Progress

PHASES = ("prefill_ms", "decode_ms")


@dataclass(frozen=True)
class Times:
    """Milliseconds of every round, by phase: of a prompt, and of each token after it."""

    prefill_ms: list[float]
    decode_ms: list[float]

    def median(self, phase: str) -> float:
        return float(statistics.median(getattr(self, phase)))

    def relative(self, phase: str, other: Times) -> float:
        """The median of the rounds' quotients: what slows the machine for a while cancels out."""
        pairs = zip(getattr(self, phase), getattr(other, phase), strict=True)
        return float(statistics.median(ours / theirs for ours, theirs in pairs))


def has_gpu() -> bool:
    """Whether PyTorch finds a GPU."""
    import torch

    return torch.cuda.is_available()


def _check_device(device: str) -> None:
    if device == "cuda" and not has_gpu():
        raise InputError("budget.latency.device is 'cuda', but PyTorch finds no GPU; use cpu")


def random_models(
    shape: ModelShape, widths: Sequence[Sequence[LayerWidth]], dtype: str, device: str
) -> list[Any]:
    """Models of `shape` with these layers and random weights; all share the memory of the widest.

    Each is what the exported folder becomes in PyTorch: the family's own layers, every weight contiguous.

    Raises:
        InputError: a GPU is asked for, and none is there.
    """
    import torch

    _check_device(device)
    buffers: dict[str, Any] = {}
    models = [_skeleton(shape, layers, dtype) for layers in widths]
    for name, size in _largest(models).items():
        values = torch.empty(size, dtype=getattr(torch, dtype), device=device)
        buffers[name] = values.normal_(std=0.02)
    for model in models:
        state = {n: buffers[n][: p.numel()].view(p.shape) for n, p in model.named_parameters()}
        model.load_state_dict(state, strict=False, assign=True)
        model.tie_weights()
        with torch.device(device):  # what no state holds
            model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
            _make_scales(model)
    return models


def _make_scales(model: Any) -> None:
    """Make the scales that modules keep as buffers beside a number, as Gemma's embedding does."""
    import torch

    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                setattr(module, name, torch.tensor(getattr(module, f"scalar_{name}")))


def _largest(models: Sequence[Any]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for model in models:
        for name, parameter in model.named_parameters():
            sizes[name] = max(sizes.get(name, 0), parameter.numel())
    return sizes


def _skeleton(shape: ModelShape, layers: Sequence[LayerWidth], dtype: str) -> Any:
    """A model without storage whose layers have these widths, as it is exported where they differ."""
    import torch

    from stages.families.pruned import pruned_model

    family = FAMILIES[shape.family]
    settings = family.settings(shape) | {"num_hidden_layers": len(layers), "dtype": dtype}
    return pruned_model(family, settings, layers).to(getattr(torch, dtype)).eval()


def times(models: Sequence[Any], vocabulary: int, section: Latency, label: str) -> list[Times]:
    """Time every model in turn, `section.rounds` times after a round that does not count.

    Raises:
        InputError: a GPU is asked for, and none is there.
    """
    import torch

    _check_device(section.device)
    tokens = torch.arange(section.prompt + section.continuation, device=section.device) * 7919 % vocabulary
    with _threads(section), torch.inference_mode():
        clock = _clock(section)
        found = in_turn(
            len(models), section.rounds, lambda i: _once(models[i], tokens[None], section, clock), label
        )
    return [Times([1000 * p for p, _ in own], [1000 * d for _, d in own]) for own in found]


def in_turn(
    count: int, rounds: int, once: Callable[[int], tuple[float, float]], label: str | None = None
) -> list[list[tuple[float, float]]]:
    """Seconds of prompt and continuation of `count` models, each `rounds` times.

    `once` times the model of an index. They take turns, so that what slows the machine for a while slows
    all of them; a first round warms up and does not count. With a `label`, a bar shows how far it is.
    """
    found: list[list[tuple[float, float]]] = [[] for _ in range(count)]
    turns = [(r, i) for r in range(rounds + 1) for i in range(count)]
    for round_, index in Progress(turns, desc=label, unit="run", leave=False, disable=label is None):
        seconds = once(index)
        if round_:
            found[index].append(seconds)
    return found


def _once(model: Any, tokens: Any, section: Latency, clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds of a prompt, and of a token after it."""
    start = clock()
    out = model(tokens[:, : section.prompt], use_cache=True, logits_to_keep=1)
    middle = clock()
    for place in range(section.prompt, section.prompt + section.continuation):
        token = tokens[:, place : place + 1]
        out = model(token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
    return middle - start, (clock() - middle) / section.continuation


def _clock(section: Latency) -> Callable[[], float]:
    """Seconds. On one thread of a CPU, of that thread: other programs' turns are not the model's time."""
    if section.device == "cuda":
        import torch

        def synchronised() -> float:
            torch.cuda.synchronize()
            return time.perf_counter()

        return synchronised
    import torch

    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


@contextlib.contextmanager
def _threads(section: Latency) -> Iterator[None]:
    """PyTorch on `section.threads` threads for a while."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(section.threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
