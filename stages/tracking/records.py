"""What stages hand over to be tracked: plain values, without a name of MLflow's.

A row of the journal is taken as it is, by the `MeasuredRow` protocol, so that the record knows nothing of
who tells of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Protocol

from stages.architecture import Architecture
from stages.files import digest

Values = Mapping[str, str | float | int]
Numbers = Mapping[str, float]


class MeasuredRow(Protocol):
    """A measured architecture: a row of a journal."""

    @property
    def key(self) -> str: ...
    @property
    def context(self) -> str: ...
    @property
    def architecture(self) -> Architecture: ...
    @property
    def design(self) -> str: ...
    @property
    def overall_ratio(self) -> float: ...
    @property
    def metrics(self) -> Numbers: ...
    @property
    def seconds(self) -> float: ...
    @property
    def measured_at(self) -> str: ...
    @property
    def weights(self) -> str: ...
    @property
    def failed(self) -> str: ...


class Use(StrEnum):
    """What an architecture was measured for: figures of one use compare, of two they may not."""

    PAIR = "pair"
    FINALIST = "finalist"
    FINAL_TABLE = "final table"
    STEP = "step of the search"
    TYPE = "type of weights"


@dataclass(frozen=True)
class Role:
    """What a measured architecture became."""

    name: str
    """E.g. winner, finalist, or a baseline's name."""
    objective: float | None = None


@dataclass(frozen=True)
class SearchRound:
    """A round of the search: what forecast, how many were forecast and measured, and its errors."""

    number: int
    predictor: str
    """The kind."""
    sampler: str
    seed: int
    trials: int
    measured: int
    best_forecast: float
    """The lowest objective among the forecasts."""
    errors: Numbers

    @property
    def key(self) -> str:
        """A digest of it: the same round of a search that is begun again has the same."""
        return digest(asdict(self))


@dataclass(frozen=True)
class FittedPredictor:
    """The predictor of one target, and how far it is off."""

    target: str
    scale: str
    """The scale that errors are on."""
    law: int
    """1 where the target never falls as a cut grows, -1 where it never rises, 0 where neither is known."""
    pairs: int
    settings: Values
    """The section of params that it was fitted by."""
    held_out: Mapping[str, object]
    """Errors on pairs that it did not see; what is not a float counts something and is not told."""
    cross_validated: Mapping[str, object]


@dataclass(frozen=True)
class ExportedModel:
    """The model that was exported, and what the final table says of it."""

    architecture: str
    """The id of the architecture."""
    source: str
    """The source of the dense model, as params name it."""
    overall_ratio: float
    parameters: int
    metrics: Numbers
    objective: float
    """The search's objective on the selection part, of the weights as they are exported; lower is better."""
    measured: str
    """A digest of how that was measured: objectives with the same one can be compared."""
