"""What a stage may tell of its work as it goes, whoever keeps it: MLflow, or nobody.

What is told decides nothing that a stage writes, so that no stage depends on this folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from stages.config.params import Params
from stages.tracking.mlflow_tracker import MlflowTracker
from stages.tracking.nothing import Nothing
from stages.tracking.records import (
    ExportedModel,
    FittedPredictor,
    MeasuredRow,
    Numbers,
    Role,
    SearchRound,
    Use,
)

if TYPE_CHECKING:
    import pandas


class Tracker(Protocol):
    """One stage's view of what keeps track of runs: ``with open_tracker(…) as tracker:``."""

    def __enter__(self) -> Self:
        """Begin, or resume, the run of the pipeline that this stage belongs to.

        A store that does not work costs nothing but what it would show: then and later it is said once, and
        what is told is kept for the next start.

        Raises:
            InputError: a package that it takes is not installed.
        """

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def run(self) -> str:
        """The id of the run of the pipeline; nothing where nothing is tracked."""

    def log_evaluation(self, row: MeasuredRow, protocol: Mapping[str, str], use: Use) -> None:
        """Keep a measured architecture, once for its key, and what it was measured for.

        `protocol` says in words how the figures of each corpus were measured.
        """

    def tag_roles(self, roles: Mapping[str, Role]) -> None:
        """Say what measured architectures became, those of earlier runs too, by the keys of their rows."""

    def log_round(self, found: SearchRound, predictor: Path) -> None:
        """Keep a round of the search, once for its key, and its predictor's folder."""

    def log_predictor(
        self,
        fitted: FittedPredictor,
        folder: Path,
        example: pandas.DataFrame,
        forecast: pandas.DataFrame,
        artifacts: Sequence[Path] = (),
    ) -> str:
        """Keep a saved predictor, to be loaded by name later; where it is found, or nothing.

        `example` features and their `forecast` tell its signature.
        """

    def log_model(self, exported: ExportedModel, folder: Path, name: str, description: str = "") -> str:
        """Keep an exported Hugging Face folder by that name; where it is found, or nothing.

        The same weights are kept once. `description` is Markdown.
        """

    def log_curve(self, name: str, figures: Numbers) -> None:
        """Keep a point of curves with the run of the pipeline: figures after so many "tokens"."""

    def log_stage(self, metrics: Numbers = ..., artifacts: Sequence[Path] = (), note: str = "") -> None:
        """Keep figures and files with the run of the pipeline; a folder whole, under its own name.

        `note`, in Markdown, describes the run.
        """


def open_tracker(stage: str, params: Params, *, enabled: bool) -> Tracker:
    """The tracker of a stage, to be entered with `with`; one that does nothing unless `enabled`."""
    return MlflowTracker(stage, params) if enabled else Nothing()
