"""A toy importance: a unit matters as much as the largest weight that reads it."""

import torch

from stages.config.choices import IMPORTANCES
from stages.evaluate.calibrate.importance import CalibrationData, Importance
from stages.evaluate.results.scores import UnitScores


def largest(data: CalibrationData) -> UnitScores:
    shape, layers = data.network.shape, data.network.layers
    sizes = (shape.kv_groups, shape.heads_per_group, shape.head_dim)
    heads = [layer.o.abs().amax(0).view(sizes).amax(-1) for layer in layers]
    channels = [layer.down.abs().amax(0) for layer in layers]
    return UnitScores.of(
        torch.stack(heads), torch.zeros(shape.layers, shape.kv_groups), torch.stack(channels)
    )


IMPORTANCES.add("largest", Importance(largest, source="a toy"))
