"""Smaller values that the report is made of: the front, and trust in forecasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stages.train_predictor.results import Judged

FRONT = "front"


@dataclass(frozen=True)
class FrontPoint:
    """A row of the front: an architecture at its overall ratio, measured on the selection part.

    `name` is "dense", "uniform", "simple", "winner" or "front", `architecture` an id. `forecast_ppl` is
    empty where the architecture is among the pairs; `takes` is by limit of the budget.
    """

    name: str
    architecture: str
    overall_ratio: float
    parameters: int
    ppl: Mapping[str, float]
    forecast_ppl: Mapping[str, float]
    takes: Mapping[str, float]
    dominated: bool


@dataclass(frozen=True)
class Trust:
    """What says how far forecasts can be trusted, beside the errors on held-out pairs.

    `cross_validated` has by target "pairs", "r2", "spearman", "spearman_near_budget",
    "pairs_near_budget", "top_recall", "top"; a figure that too few pairs leave unknown is missing.
    `rounds` has a mapping a round of the search: "round", "measured", "spearman.objective" and by target
    "bias.TARGET" and "rmse.TARGET", of architectures that were forecast before they were measured.
    """

    kind: str = ""
    promised_coverage: float = 0.8
    cross_validated: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    ablation: Sequence[Judged] = ()
    rounds: Sequence[Mapping[str, float]] = ()
