"""What the exported model takes of what the budget limits: forecast beside measured, dense beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stages.architecture import Architecture, ModelShape
from stages.config.budget import Budget
from stages.export.benchmark.speed import tensor_bytes
from stages.export.results.final_table import Taken
from stages.progress import without_bars
from stages.sample import timing
from stages.sample.designs import DENSE
from stages.sample.latency import LatencyTable
from stages.sample.limits import limits_of
from stages.sample.timing import PHASES, Times
from stages.search.outcome import WINNER


def taken(
    shape: ModelShape,
    budget: Budget,
    table: LatencyTable | None,
    contenders: Mapping[str, Architecture],
    folder: Path,
) -> list[Taken]:
    """One entry a limit in bytes or milliseconds; the winner is the model in `folder`.

    Milliseconds are measured as the table's were, the dense model and the winner in turn.
    """
    limits = [limit for limit in limits_of(shape, budget, table) if limit.name != "overall_ratio"]
    times = _times(shape, budget, folder) if budget.timed else {}
    found = []
    for limit in limits:
        if limit.name in PHASES:
            measured = {name: of.median(limit.name) for name, of in times.items()}
        else:
            measured = {WINNER: float(sum(tensor_bytes(folder).values()))}
        forecast = {name: limit.of(architecture) for name, architecture in contenders.items()}
        found.append(Taken(limit.name, limit.most, forecast, measured))
    return found


def _times(shape: ModelShape, budget: Budget, folder: Path) -> dict[str, Times]:
    from transformers import AutoModelForCausalLM

    from stages.families import register

    register(folder)
    device = torch.device(budget.latency.device)
    with without_bars():
        winner: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, budget.dtype))
    (dense,) = timing.random_models(shape, [shape.widths], budget.dtype, budget.latency.device)
    models = [dense, winner.eval().to(device)]
    found = timing.times(models, shape.vocabulary, budget.latency, "latency of the export")
    return dict(zip((DENSE, WINNER), found, strict=True))
