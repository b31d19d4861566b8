"""Importance by the size of the weights alone."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.architecture import ModelShape
from stages.evaluate.calibrate.importance import CalibrationData, Importance
from stages.evaluate.network.layers import Layer
from stages.evaluate.results.scores import UnitScores


def score(data: CalibrationData) -> UnitScores:
    """L2 norms of the units' weights."""
    made = [_squares_of_weights(layer, data.network.shape) for layer in data.network.layers]
    return UnitScores.of(*(torch.stack([m[part] for m in made]).sqrt() for part in range(3)))


def _squares_of_weights(layer: Layer, shape: ModelShape) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of squared weights of heads (G, H), groups (G,) and channels (C,), in float64 on the CPU."""
    g, h, d = shape.kv_groups, shape.heads_per_group, shape.head_dim

    def squared(weight: Tensor) -> Tensor:
        return weight.detach().double().square().cpu()

    heads = squared(layer.q).view(g, h, d, -1).sum((2, 3)) + squared(layer.o).view(-1, g, h, d).sum((0, 3))
    groups = squared(layer.k).view(g, -1).sum(1) + squared(layer.v).view(g, -1).sum(1)
    channels = squared(layer.gate).sum(1) + squared(layer.up).sum(1) + squared(layer.down).sum(0)
    return heads, groups, channels


MAGNITUDE = Importance(score, source="Li et al. 2017, arXiv 1608.08710")
