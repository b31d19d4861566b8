"""Importance by the moments of activations on calibration text: the inputs x of output projections W."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stages.architecture import Kind
from stages.evaluate.calibrate.importance import CalibrationData, Importance
from stages.evaluate.calibrate.statistics import SiteStatistics
from stages.evaluate.results.scores import UnitScores

Elements = Callable[[SiteStatistics, Tensor], Tensor]
"""What each element of a site adds to its unit's score, (n,) in float64 on the CPU, by its moments and W."""


def _summed(data: CalibrationData, elements: Elements, finish: Callable[[Tensor], Tensor]) -> UnitScores:
    """Sums over the elements of each unit, finished."""
    shape = data.network.shape
    heads = [torch.zeros(width.of(Kind.ATTENTION)) for width in shape.widths]
    channels = [torch.zeros(width.of(Kind.MLP)) for width in shape.widths]
    for site, moments in data.statistics():
        found = elements(moments, data.network.added_weight(site))
        if site.kind is Kind.ATTENTION:
            heads[site.layer] = finish(found.view(*shape.width(site), -1).sum(-1))
        else:
            channels[site.layer] = finish(found)
    groups = [torch.zeros(width.kv_groups) for width in shape.widths]
    return UnitScores.of_layers(shape, heads, groups, channels)


def _columns(projection: Tensor) -> Tensor:
    """‖W_i‖² of every column."""
    return projection.double().square().sum(0).cpu()


def activation(data: CalibrationData) -> UnitScores:
    """L2 norms of the units' activations over tokens."""
    return _summed(data, lambda moments, _: moments.square_sums().cpu(), Tensor.sqrt)


def wanda(data: CalibrationData) -> UnitScores:
    """L2 norms of ‖x_i‖ ‖W_i‖ over the elements i of a unit."""
    return _summed(data, lambda moments, w: moments.square_sums().cpu() * _columns(w), Tensor.sqrt)


def fluctuation(data: CalibrationData) -> UnitScores:
    """Σ Var(x_i) ‖W_i‖² over the elements i of a unit."""
    return _summed(data, lambda moments, w: moments.variances().cpu() * _columns(w), lambda total: total)


ACTIVATION = Importance(
    activation, source="Minitron, Muralidharan et al. 2024, arXiv 2407.14679", by_statistics=True
)
WANDA = Importance(wanda, source="Sun et al. 2024, arXiv 2306.11695, by structure", by_statistics=True)
FLUCTUATION = Importance(
    fluctuation, source="FLAP, An et al. 2023, arXiv 2312.11983, eq. 5", by_statistics=True
)
