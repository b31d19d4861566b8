"""Whether quantising alone would have served: dense and exported model in the types of llama.cpp's files.

Weights are rounded as its own quantisers round them, and run by our network; so every family is measured,
and no llama.cpp is needed. Its kernels round activations too, which moves perplexity in the third digit.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.architecture import ModelShape
from stages.config.params import AlternativesSection, GGUFType
from stages.evaluate.measure.executors import Local
from stages.evaluate.measure.plan import Work
from stages.evaluate.measure.run import measure_all
from stages.evaluate.network.weights import PrunedWeights, State
from stages.evaluate.results.errors import metric_errors
from stages.evaluate.results.journal import Journal
from stages.evaluate.workbench import Workbench
from stages.export.results.final_table import Alternative
from stages.families import Family
from stages.metrics.metric import Shown
from stages.metrics.registered import shown
from stages.tracking.records import Use
from stages.tracking.tracker import Tracker

BLOCK = 32
BYTES = {"F32": 4.0, "F16": 2.0, "Q8_0": 34 / BLOCK, "Q4_0": 18 / BLOCK}
"""Bytes a weight: the quantised ones have a scale in 16 bits for each block of 32."""
VERSION = 1
"""The version of the rounding, set by hand: raise it when rounded weights change."""


def alternatives(
    bench: Workbench,
    asked: AlternativesSection,
    models: Mapping[str, PrunedWeights],
    journal: Journal,
    tracker: Tracker,
) -> list[Alternative]:
    """Each of the `models`, by contender, in each type, on the texts of the report part alone."""
    measurement = bench.params.export.measurement.model_copy(update={"windows": asked.windows})
    evaluator = bench.evaluator("report", measurement, texts_alone=True)
    family, shape, words = bench.network.family, bench.network.shape, evaluator.selection.words()
    found = []
    for name, weights in models.items():
        made = _once(weights)
        for kind in asked.types:
            work = [
                Work(
                    weights.architecture,
                    f"{name} {kind}",
                    rounded_weights(made, kind, family, shape),
                    may_fail=True,
                )
            ]
            rows = measure_all(
                evaluator,
                Local(),
                work,
                journal,
                lambda row: tracker.log_evaluation(row, words, Use.TYPE),
                work[0].design,
            )
            if not rows:  # a weight or an activation overflowed, which is said
                continue
            row = rows[weights.architecture.id]
            metrics = shown(row.metrics, Shown.VERDICT)
            errors = metric_errors(row, metrics)
            size = size_bytes(made.make(bench.network.dtype), kind, family, shape)
            found.append(Alternative(name, kind, size, metrics, errors))
    return found


def _once(weights: PrunedWeights) -> PrunedWeights:
    """The weights, whose tensors are made once for all types."""
    return replace(weights, make=functools.cache(weights.make))


def rounded_weights(
    weights: PrunedWeights, kind: GGUFType, family: Family, shape: ModelShape
) -> PrunedWeights:
    """The weights as a GGUF file of that type holds them."""

    def make(dtype: torch.dtype) -> State:
        state = weights.make(dtype)
        return {n: rounded(t, type_of(n, t, kind, family, shape)).to(dtype) for n, t in state.items()}

    return weights.then({"rounded": kind, "version": VERSION}, make)


def type_of(name: str, tensor: Tensor, kind: GGUFType, family: Family, shape: ModelShape) -> str:
    """The type that a file of that `kind` stores a tensor in, as `gguf.writer` writes it.

    Norms and biases stay in float32, rows that are no whole number of blocks in F16, but for those of an
    MLP's channels, which the file pads; and the output matrix is not rounded below eight bits.
    """
    if tensor.dim() < 2:
        return "F32"
    if tensor.shape[-1] % BLOCK and not name.endswith(f"{family.down}.weight"):
        return "F16"
    output = family.embedding if shape.tied_embeddings else family.head
    return "Q8_0" if kind == "Q4_0" and name == output else kind


def size_bytes(state: State, kind: GGUFType, family: Family, shape: ModelShape) -> int:
    """What the tensors take in a file of that type, which pads an MLP's channels to whole blocks."""
    total, wider = 0.0, tuple(f"{name}.weight" for name in (family.gate, family.up))
    for name, tensor in state.items():
        rows, columns = tensor.shape if tensor.dim() > 1 else (1, len(tensor))
        if name.endswith(f"{family.down}.weight"):
            columns += -columns % BLOCK
        elif name.endswith(wider):
            rows += -rows % BLOCK
        total += rows * columns * BYTES[type_of(name, tensor, kind, family, shape)]
    return round(total)


def rounded(tensor: Tensor, kind: str) -> Tensor:
    """A tensor (..., n) in float32 as the type holds it, digit for digit as package gguf's quantisers do."""
    values = tensor.float()
    if kind == "F32":
        return values
    if kind == "F16":
        return values.half().float()
    width = values.shape[-1]
    blocks = F.pad(values, (0, -width % BLOCK)).unflatten(-1, (-1, BLOCK))
    if kind == "Q8_0":
        scale = blocks.abs().amax(-1, keepdim=True) / 127
        scaled = blocks * _inverse(scale)
        floor = scaled.abs().floor()
        steps = scaled.sign() * (floor + (2 * (scaled.abs() - floor)).floor())  # halves away from zero
    else:
        largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
        scale = largest / -8
        steps = (blocks * _inverse(scale) + 8.5).trunc().clamp(0, 15) - 8
    found: Tensor = (steps * scale.half().float()).flatten(-2)[..., :width]
    return found


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, 1 / scale)
