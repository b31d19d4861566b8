"""Importance by the size of the weights alone."""

from __future__ import annotations

from torch import Tensor

from stages.architecture import LayerWidth
from stages.evaluate.calibrate.importance import CalibrationData, Importance
from stages.evaluate.network.layers import Layer
from stages.evaluate.results.scores import UnitScores


def score(data: CalibrationData) -> UnitScores:
    """L2 norms of the units' weights."""
    shape = data.network.shape
    made = [
        _squares_of_weights(layer, width, shape.head_dim)
        for layer, width in zip(data.network.layers, shape.widths, strict=True)
    ]
    return UnitScores.of_layers(shape, *([m[part].sqrt() for m in made] for part in range(3)))


def _squares_of_weights(layer: Layer, width: LayerWidth, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of squared weights of heads (g, h), groups (g,) and channels (c,), in float64 on the CPU."""
    g, h, _ = width

    def squared(weight: Tensor) -> Tensor:
        return weight.detach().double().square().cpu()

    heads = squared(layer.q).unflatten(1, (h, d)).sum((2, 3))
    heads += squared(layer.o).unflatten(2, (h, d)).sum((0, 3))
    groups = _of_groups(squared(layer.k), g, d) + _of_groups(squared(layer.v), g, d)
    channels = squared(layer.gate).sum(1) + squared(layer.up).sum(1) + squared(layer.down).sum(0)
    return heads, groups, channels


def _of_groups(values: Tensor, groups: int, head_dim: int) -> Tensor:
    """Sums (groups,) over the rows of each KV group."""
    found: Tensor = values.unflatten(0, (groups, head_dim)).flatten(1).sum(1)
    return found


MAGNITUDE = Importance(score, source="Li et al. 2017, arXiv 1608.08710")
