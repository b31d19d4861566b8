"""How much each unit matters: the scores by which the units of a site are sorted.

Each method is an `Importance`, entered in `stages.config.choices.IMPORTANCES` under the name by which
``evaluate.importance`` asks for it; one file a kind of method. x are a site's activations on calibration
text (the inputs of its output projection), W the output projection:

| method | a unit's score | file |
| --- | --- | --- |
| ``magnitude`` | L2 norm of all its weights | `magnitude` |
| ``activation`` | L2 norm of its activations over tokens | `moments` |
| ``wanda`` | L2 norm of ‖x_i‖ ‖W_i‖ over its elements i | `moments` |
| ``fluctuation`` | Σ Var(x_i) ‖W_i‖² over its elements i | `moments` |
| ``taylor``, ``taylor-second`` | what its loss does to the loss, by gradients | `taylor` |
| ``random`` | drawn, seeded: a control | `control` |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from stages.architecture import ModelShape, Site
from stages.evaluate.calibrate.statistics import SiteStatistics
from stages.evaluate.network.batch import Batch
from stages.evaluate.network.elastic import DenseNetwork
from stages.evaluate.results.scores import UnitScores


@dataclass(frozen=True)
class CalibrationData:
    """What a method may score by: the dense network, calibration batches, and every site's statistics.

    These come one after the other, layer by layer, when they are asked for.
    """

    network: DenseNetwork
    batches: Sequence[Batch]
    statistics: Callable[[], Iterable[tuple[Site, SiteStatistics]]]


def _nothing(shape: ModelShape, tokens: int, batch_tokens: int, element_bytes: int) -> int:
    return 0


@dataclass(frozen=True)
class Importance:
    """A method of scoring units.

    `source` cites it. `version` is set by hand and raised when its scores change. What it needs, for the
    plan of a run: `by_statistics` says that it reads the moments of activations (a forward pass and a
    Gram matrix a site), `by_gradient` that it makes a backward pass; `held_bytes` gives the bytes beyond
    the weights that it holds, from the shape, the calibration tokens, those of a batch, and an element's
    bytes.
    """

    score: Callable[[CalibrationData], UnitScores]
    source: str
    version: int = 1
    by_statistics: bool = False
    by_gradient: bool = False
    held_bytes: Callable[[ModelShape, int, int, int], int] = _nothing
