"""Importance that knows nothing: what any other method must beat."""

from __future__ import annotations

import torch

from stages.evaluate.calibrate.importance import CalibrationData, Importance
from stages.evaluate.results.scores import UnitScores

SEED = 0


def score(data: CalibrationData) -> UnitScores:
    """Uniform draws, the same each time."""
    shape, generator = data.network.shape, torch.Generator().manual_seed(SEED)
    heads = torch.rand(shape.layers, shape.kv_groups, shape.heads_per_group, generator=generator)
    groups = torch.zeros(shape.layers, shape.kv_groups)
    return UnitScores.of(heads, groups, torch.rand(shape.layers, shape.channels, generator=generator))


RANDOM = Importance(score, source="a control")
