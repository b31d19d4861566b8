"""MLflow: one run per pipeline run, and below it one per evaluation, predictor and search.

MLflow is a projection of files. What is told becomes a letter, which lies on the disk until MLflow has
taken it, and which a thread of its own delivers: no stage waits for a store that is slow or gone, nor fails
with it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

from stages.config.params import Params
from stages.files import InputError, digest
from stages.metrics.objective import objective_of
from stages.tracking import names, pipeline_run, registry, sqlite_store, store
from stages.tracking.delivery import Delivery
from stages.tracking.mlflow_writer import MlflowWriter
from stages.tracking.names import NONE, NamedRun
from stages.tracking.outbox import Kind, Letter, Outbox
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

COPY_BYTES_PER_S = 1e6
"""How slowly at worst a store takes a model, while the stage waits for its name."""


class MlflowTracker:
    """One stage's view of MLflow: `with MlflowTracker("evaluate", params) as tracker:`.

    While it is open, the run of the pipeline is RUNNING; then FINISHED, FAILED after an exception
    or KILLED after an interrupt. What a killed process left RUNNING is set KILLED by the next one.
    """

    def __init__(self, stage: str, params: Params) -> None:
        self.stage = stage
        self.uri = store.uri()
        self._params = params
        self._told: set[str] = set()
        self._said = False

    def __enter__(self) -> MlflowTracker:
        """Reach the store and begin, or resume, the run of the pipeline; log what was left before.

        Raises:
            InputError: mlflow is not installed.
        """
        self._settings = contextlib.ExitStack()
        self._settings.enter_context(store.environment(store.BRIEF))
        self._settings.enter_context(_quiet("urllib3"))
        mlflow = _import_mlflow()
        path = store.sqlite_file(self.uri)
        self._begin = pipeline_run.describe(self.stage, self._params)
        self._outbox = Outbox(self._begin)
        self._outbox.open()
        left = list(self._outbox.left())
        _import_for(left)
        self._delivery = Delivery(self._deliver, self._failed, steady=path is not None)
        self._writer = MlflowWriter(mlflow, self.uri, self._begin, self._delivery.step, self._say)
        begin = Letter(Kind.BEGIN, self._begin, self._begin.at)
        self._delivery.put([begin, *left, Letter(Kind.BURY, self._begin, self._begin.at)])
        self._delivery.start()
        is_new = path is not None and not sqlite_store.is_there(path)
        self._delivery.answer(begin, sqlite_store.MAKING_S if is_new else 0.0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        killed = kind is not None and issubclass(kind, KeyboardInterrupt)
        status = "FINISHED" if kind is None else "KILLED" if killed else "FAILED"
        try:
            self._put(Kind.END, {"status": status})
            self._tell_of(self._delivery.finish(killed))
        finally:
            self._outbox.close()
            self._settings.close()

    def log_evaluation(self, row: MeasuredRow, protocol: Mapping[str, str], use: Use) -> None:
        """Log a measured architecture as a run of its own, unless its key is logged already.

        Raises:
            ValueError: a metric is not a finite number.
        """
        if row.key not in self._told and not self._writer.is_logged(self._begin, row.key):
            about = names.evaluation(
                row, protocol, use, self._params.model.source, self._objective(row.metrics)
            )
            self._put_run(Kind.RUN, about)
        self._told.add(row.key)

    def tag_roles(self, roles: Mapping[str, Role]) -> None:
        """Tag logged evaluations, those of earlier runs of the pipeline too, by key."""
        for key, role in roles.items():
            self._put(Kind.TAGS, {"key": key, "tags": dict(names.role(role))})

    def log_round(self, found: SearchRound, predictor: Path) -> None:
        """Log a round of the search as a run of its own, with its predictor's folder, once for its key."""
        title = names.title(self._params.model.source, self._params.budget.overall_ratio)
        self._put_run(Kind.RUN, names.search_round(found, title), [predictor])

    def log_predictor(
        self,
        fitted: FittedPredictor,
        folder: Path,
        example: pandas.DataFrame,
        forecast: pandas.DataFrame,
        artifacts: Sequence[Path] = (),
    ) -> str:
        """Log a saved predictor as a run of its own and register it as `prunecast-BASE-TARGET`.

        `example` features and their `forecast` tell its signature. It loads with
        `mlflow.pyfunc.load_model` through `stages.train_predictor.pyfunc`, whose code goes with it.

        Returns:
            The URI of the version, or nothing where MLflow has not taken it yet. Until the next one is
            logged, `models:/prunecast-BASE-TARGET@champion` is the same model.
            The same predictor with the same errors is stored once.
        """
        known = digest(asdict(fitted), registry.digest_of(folder))
        about = names.predictor(fitted, known, self._params.model.source)
        tables = {"example": example.astype("float64"), "forecast": forecast}  # integers would refuse floats
        content: dict[str, Any] = {"registered": names.registered(fitted.target, self._params.model.source)}
        content["digest"] = known
        content |= {name: table.to_dict("split") for name, table in tables.items()}

        return self._answer(self._put_run(Kind.PREDICTOR, about, [folder, *artifacts], content))

    def log_model(self, exported: ExportedModel, folder: Path, name: str, description: str = "") -> str:
        """Log an exported Hugging Face folder as a run of its own, registered as `prunecast-BASE-NAME`.

        The same weights are stored once. The champion is the best of that name: another
        becomes it where it was measured alike and its objective is lower (`stages.tracking.champion`
        decides otherwise). `description` is Markdown that MLflow shows beside the version. Returns the
        version's URI, or nothing where MLflow has not taken it yet.
        """
        known = registry.digest_of(folder)
        registered = names.registered(name, exported.source)
        content = {"registered": registered, "digest": known, "source": exported.source}
        content |= {"folder": str(folder.resolve()), "description": description}
        letter = self._put_run(Kind.MODEL, names.model(exported, known), (), content)
        return self._answer(letter, registry.size_bytes(folder) / COPY_BYTES_PER_S)

    def log_stage(self, metrics: Numbers = NONE, artifacts: Sequence[Path] = (), note: str = "") -> None:
        """Log onto the run of the pipeline. A folder goes whole, under its own name.

        `note` is Markdown that MLflow shows as the run's description.
        """
        store.check_metrics(self.stage, metrics)
        self._put(Kind.STAGE, {"metrics": dict(metrics), "note": note}, artifacts)

    def log_curve(self, name: str, figures: Numbers) -> None:
        """Log a point of the curves ``NAME.FIGURE`` of the run of the pipeline; their steps are tokens."""
        values = {f"{name}.{key}": value for key, value in figures.items() if key != "tokens"}
        store.check_metrics(self.stage, values)
        self._put(Kind.STAGE, {"metrics": values, "step": int(figures["tokens"])})

    @property
    def run(self) -> str:
        """The id of the run of the pipeline; nothing where nothing is tracked, or not yet."""
        return self._writer.run

    def _objective(self, metrics: Numbers) -> float | None:
        """The search's objective of what was measured; None where a corpus of it was not."""
        weights = self._params.search.objective
        return objective_of(metrics, weights) if weights.keys() <= metrics.keys() else None

    def _put_run(
        self, kind: Kind, about: NamedRun, files: Sequence[Path] = (), content: Mapping[str, Any] = NONE
    ) -> Letter:
        store.check_metrics(about.name, about.metrics)
        run = {"name": about.name, "params": dict(about.params), "metrics": dict(about.metrics)}
        return self._put(kind, {**content, "run": run | {"tags": dict(about.tags)}}, files)

    def _put(self, kind: Kind, content: Mapping[str, Any], files: Sequence[Path] = ()) -> Letter:
        letter = self._outbox.add(kind, content, files)
        self._delivery.put([letter])
        if files and letter.path is None:  # not kept: the files may be gone soon
            self._delivery.answer(letter)
        return letter

    def _answer(self, letter: Letter, work_s: float = 0.0) -> str:
        return self._delivery.answer(letter, work_s) or ""

    def _deliver(self, letter: Letter) -> str:
        answer = self._writer.deliver(letter)
        self._outbox.remove(letter)
        return answer

    def _failed(self, error: Exception) -> None:
        """Say once that the store does not work."""
        if not self._said:
            self._said = True
            self._say(
                f"MLflow cannot use the store {self.uri} ({_cause(error)}). Measuring goes on; "
                f"{self._kept()}. Mend the store, or pass --no-tracking"
            )

    def _kept(self) -> str:
        if self._outbox.problem:
            return f"what is not logged cannot be kept either ({self._outbox.problem})"
        return f"what is not logged is kept in {self._outbox.root} and logged at the next start at the latest"

    def _tell_of(self, letters: Sequence[Letter]) -> None:
        """Say that a store was too slow, unless it is said already that it does not work."""
        count = sum(letter.kind not in (Kind.BEGIN, Kind.BURY) for letter in letters)
        if count and not self._said:
            self._said = True
            self._say(f"MLflow's store {self.uri} is slow: {count} things are not logged yet; {self._kept()}")

    def _say(self, text: str) -> None:
        store.say(self.stage, text)


def _cause(error: BaseException) -> str:
    """What lies at the bottom of an error, on one line."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    text = " ".join(str(error).split())
    told = text if isinstance(error, sqlite_store.StoreError) else f"{type(error).__name__}: {text}"[:300]
    return store.without_password(told)


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep a library from telling of every attempt."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _import_for(letters: Sequence[Letter]) -> None:
    """Import what letters need, before a stage imports the same in another thread."""
    kinds = {letter.kind for letter in letters}
    if kinds & {Kind.PREDICTOR, Kind.MODEL}:
        pass
    if Kind.MODEL in kinds:
        import transformers  # noqa: F401


def _import_mlflow() -> ModuleType:
    for name, value in store.QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import mlflow
    except ModuleNotFoundError as error:
        raise InputError(
            f"the package {error.name!r} is not installed; install the project with its dependencies "
            "(`pip install -e .`), or pass --no-tracking to run without MLflow"
        ) from error
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return mlflow
