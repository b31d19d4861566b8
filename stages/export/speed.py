"""Dense against pruned in one runtime: speed, memory, size and agreement, and the ideal beside them.

Machines drift, so the two are timed in turn and compared round by round. The ideal speed-up is the dense
model's work over the pruned one's: FLOPs for a prompt, bytes of weights for a generated token.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from gguf import GGUFReader
from safetensors import safe_open
from torch import Tensor

from stages.architecture import Architecture, ModelShape
from stages.export.memory import peak_memory
from stages.export.runtimes import PyTorch, Runtime, open_runtime
from stages.families import FAMILIES


@dataclass(frozen=True)
class Spread:
    minimum: float
    median: float
    maximum: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(min(values), statistics.median(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.minimum:.4g} to {self.maximum:.4g})"


@dataclass(frozen=True)
class Load:
    """What is asked of every model.

    `prompt` is processed at once, then `continuation` token by token; both `rounds` times after a
    round that does not count. `windows` (count, L) are the texts of perplexity and agreement.
    """

    prompt: Sequence[int]
    continuation: Sequence[int]
    rounds: int
    windows: Tensor


@dataclass(frozen=True)
class Figures:
    """One artifact. Speeds are tokens a second; memory is what loading and running it added at most to
    its process; `kl` (nats a token) and `logit_difference` compare with the folder of the same weights."""

    parameters: int
    size_bytes: int
    memory_bytes: int
    prefill: Spread
    decode: Spread
    perplexity: float
    kl: float
    logit_difference: float


@dataclass(frozen=True)
class Comparison:
    """Dense and pruned in one runtime; speed-ups are those of the rounds, dense over pruned time."""

    runtime: str
    weights: str
    dense: Figures
    pruned: Figures
    prefill_speedup: Spread
    decode_speedup: Spread
    ideal_prefill: float
    ideal_decode: float


@dataclass(frozen=True)
class Artifact:
    """A folder or GGUF file, the architecture in it, and the folder of the same weights."""

    path: Path
    architecture: Architecture
    folder: Path


def compare(
    runtime: str, weights: str, dense: Artifact, pruned: Artifact, shape: ModelShape, load: Load
) -> Comparison:
    """Measure two artifacts of one runtime side by side."""
    both = (dense, pruned)
    agreements = [_agreement(artifact, load.windows) for artifact in both]
    context, threads = len(load.prompt) + len(load.continuation), torch.get_num_threads()
    memories = [
        peak_memory(artifact.path, threads, len(load.prompt), len(load.continuation)) for artifact in both
    ]
    prefill, decode = _times([open_runtime(artifact.path, threads, context) for artifact in both], load)
    figures = [
        Figures(
            artifact.architecture.kept_parameters(shape) + shape.total_parameters - shape.decoder_parameters,
            size_bytes(artifact.path),
            memory,
            Spread.of([len(load.prompt) / s for s in prefill[i]]),
            Spread.of([len(load.continuation) / s for s in decode[i]]),
            *agreement,
        )
        for i, (artifact, memory, agreement) in enumerate(zip(both, memories, agreements, strict=True))
    ]
    flops = [prefill_flops(shape, artifact.architecture, len(load.prompt)) for artifact in both]
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
    )


def prefill_flops(shape: ModelShape, architecture: Architecture, length: int) -> int:
    """FLOPs of a prompt: two a weight and token, those of causal attention, and the head once."""
    heads = sum(w.kv_groups * w.heads_per_group for w in architecture.widths)
    layers = 2 * length * architecture.kept_parameters(shape)
    return layers + 2 * length**2 * heads * shape.head_dim + 2 * shape.vocabulary * shape.hidden


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
    """Of a GGUF file, or of a folder's weights."""
    return sum(f.stat().st_size for f in ([path] if path.is_file() else path.glob("*.safetensors")))


def _times(models: Sequence[Runtime], load: Load) -> tuple[list[list[float]], list[list[float]]]:
    """Seconds of prefill and of decoding, each a list of rounds for each model, taken in turn."""
    prefill: list[list[float]] = [[] for _ in models]
    decode: list[list[float]] = [[] for _ in models]
    for round_ in range(load.rounds + 1):
        for index, model in enumerate(models):
            start = time.perf_counter()
            model.prefill(load.prompt)
            middle = time.perf_counter()
            model.decode(load.continuation)
            end = time.perf_counter()
            if round_:  # the first warms up
                prefill[index].append(middle - start)
                decode[index].append(end - middle)
    return prefill, decode


def _agreement(artifact: Artifact, windows: Tensor) -> tuple[float, float, float]:
    """Perplexity, KL divergence a token from the folder of the same weights, largest logit difference."""
    threads = torch.get_num_threads()
    model = open_runtime(artifact.path, threads, windows.shape[1], every_logit=True)
    reference = model if artifact.path == artifact.folder else PyTorch(artifact.folder, threads)
    loss, divergence, difference = 0.0, 0.0, 0.0
    for window in windows:
        logits = model.logits(window.tolist())
        ours = logits.log_softmax(-1)
        loss -= float(ours[:-1].gather(1, window[1:, None]).double().mean())
        if reference is not model:
            expected = reference.logits(window.tolist())
            divergence += kl(expected, logits)
            difference = max(difference, float((expected - logits).abs().max()))
    return math.exp(loss / len(windows)), divergence / len(windows), difference


def kl(expected: Tensor, found: Tensor) -> float:
    """Mean KL divergence in nats of the distributions of logits (L, vocabulary), expected from found."""
    total = 0.0
    for ours, theirs in zip(expected.split(64), found.split(64), strict=True):  # float64 of few at once
        p, q = ours.double().log_softmax(-1), theirs.double().log_softmax(-1)
        total += float((p.exp() * (p - q)).sum())
    return total / len(expected)
