"""MLflow: one run per pipeline run, and below it one per evaluation, predictor and search.

MLflow is a projection of the journal: an evaluation is logged once, by its key, and what a kill
kept out of MLflow is logged at the next start. With `registry` the only module that imports mlflow,
when a tracker is entered and never on import.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING

from stages.architecture import ModelShape
from stages.config.params import Params
from stages.files import InputError
from stages.tracking import names, registry, store
from stages.tracking.names import KEY, NONE, NamedRun
from stages.tracking.pipeline_run import COMMIT, DIRTY, PipelineRun
from stages.tracking.records import (
    ExportedModel,
    FittedPredictor,
    MeasuredRow,
    Numbers,
    Role,
    SearchRound,
    Values,
)
from stages.tracking.store import without_password

if TYPE_CHECKING:
    import pandas

PARENT = "mlflow.parentRunId"
PARAMS_PER_CALL = 100


class MlflowTracker:
    """One stage's view of MLflow: `with MlflowTracker("evaluate", params) as tracker:`.

    While it is open, the run of the pipeline is RUNNING; then FINISHED, FAILED after an exception
    or KILLED after an interrupt. What a killed process left RUNNING is set KILLED by the next one.
    """

    def __init__(self, stage: str, params: Params) -> None:
        self.stage = stage
        self.uri = store.uri()
        self._params = params

    def __enter__(self) -> MlflowTracker:
        """Reach the store and begin, or resume, the run of the pipeline.

        Raises:
            InputError: mlflow is not installed, or the store cannot be used.
        """
        try:
            with store.environment(store.BRIEF), store.exclusive(self.uri):
                self._mlflow = _import_mlflow()
                self._client = self._mlflow.MlflowClient(tracking_uri=self.uri)
                self._registry = registry.ModelRegistry(self._client, self.uri)
                self._pipeline = PipelineRun(self._client, self.uri, self.stage, self._params)
                if self._pipeline.begin():
                    content = self._params.model_dump(mode="json")
                    self._log(self._pipeline.id, store.flatten(content))
        except InputError:
            raise
        except Exception as error:  # whatever the driver of the store raises
            problem = without_password(str(error).strip().split("\n")[0])
            raise InputError(
                f"MLflow cannot use the store {without_password(self.uri)} ({problem}). "
                "Start its server, set MLFLOW_TRACKING_URI to a store that works, or pass --no-tracking"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipeline.end(kind)

    def log_evaluation(self, row: MeasuredRow, shape: ModelShape, protocol: Mapping[str, str]) -> None:
        """Log a measured architecture as a run of its own, unless its key is logged already.

        Raises:
            ValueError: a metric is not a finite number.
        """
        if row.key in self._logged:
            return
        with self._run(names.evaluation(row, shape, protocol)) as run:
            pass
        self._logged[row.key] = run

    def logged_keys(self) -> frozenset[str]:
        """Keys of the evaluations that MLflow holds whole; deleted runs do not count."""
        return frozenset(self._logged)

    def tag_roles(self, roles: Mapping[str, Role]) -> None:
        """Tag logged evaluations, those of earlier runs of the pipeline too, by key.

        Raises:
            KeyError: no evaluation of that key is logged.
        """
        from mlflow.entities import RunTag

        for key, role in roles.items():
            if key not in self._logged:
                raise KeyError(f"no evaluation with key {key!r} is logged; call log_evaluation first")
            tags = [RunTag(name, value) for name, value in names.role(role).items()]
            self._client.log_batch(self._logged[key], tags=tags)

    def log_round(self, found: SearchRound, predictor: Path) -> None:
        """Log a round of the search as a run of its own, with its predictor's folder."""
        with self._run(names.search_round(found), [predictor]):
            pass

    def log_predictor(
        self,
        fitted: FittedPredictor,
        folder: Path,
        example: pandas.DataFrame,
        forecast: pandas.DataFrame,
        artifacts: Sequence[Path] = (),
    ) -> str:
        """Log a saved predictor as a run of its own and register it as `prunecast-TARGET`.

        `example` features and their `forecast` tell its signature. It loads with
        `mlflow.pyfunc.load_model` through `stages.train_predictor.pyfunc`, whose code goes with it.

        Returns:
            The URI of the new version, `models:/prunecast-TARGET/VERSION`. Until the next one is
            logged, `models:/prunecast-TARGET@champion` is the same model.
        """
        with self._run(names.predictor(fitted), artifacts) as run:
            return self._registry.add_predictor(
                names.registered(fitted.target), run, folder, example, forecast, self._origin
            )

    def log_model(self, exported: ExportedModel, folder: Path, name: str, description: str = "") -> str:
        """Log an exported Hugging Face folder as a run of its own and register it as `prunecast-NAME`.

        The same weights are stored once: exported again, their version becomes the champion again.
        `description` is Markdown that MLflow shows beside the version. Returns the version's URI.
        """
        name, digest = names.registered(name), registry.digest_of(folder)
        version = self._registry.find(name, digest)
        if version is not None:
            return self._registry.make_champion(name, version, description)
        about = names.model(exported, digest)
        about = replace(about, tags={**about.tags, registry.DIGEST: digest})
        with self._run(about) as run:
            tags = self._origin | dict(about.tags)
            return self._registry.add_folder(name, run, folder, exported.source, tags, description)

    def log_stage(self, metrics: Numbers = NONE, artifacts: Sequence[Path] = ()) -> None:
        """Log onto the run of the pipeline. A folder goes whole, under its own name."""
        store.check_metrics(self.stage, metrics)
        self._log(self._pipeline.id, NONE, metrics, artifacts)

    @property
    def run(self) -> str:
        """The id of the run of the pipeline; nothing where nothing is tracked."""
        return self._pipeline.id

    @property
    def _origin(self) -> dict[str, str]:
        return {tag: text for tag, text in self._pipeline.tags.items() if tag in (COMMIT, DIRTY)}

    @cached_property
    def _logged(self) -> dict[str, str]:
        """Runs of evaluations by key: FINISHED ones, for only those were logged whole."""
        whole = self._pipeline.search(f"attributes.status = 'FINISHED' AND tags.`{KEY}` LIKE '%'")
        return {run.data.tags[KEY]: run.info.run_id for run in whole}

    @contextlib.contextmanager
    def _run(self, about: NamedRun, artifacts: Sequence[Path] = ()) -> Iterator[str]:
        """A run below that of the pipeline, FINISHED when the body is."""
        store.check_metrics(about.name, about.metrics)
        tags = self._pipeline.tags | {PARENT: self._pipeline.id, "dvc.stage": self.stage} | dict(about.tags)
        created = self._client.create_run(self._pipeline.experiment, run_name=about.name, tags=tags)
        run = str(created.info.run_id)
        try:
            self._log(run, about.params, about.metrics, artifacts)
            yield run
        except BaseException:
            with contextlib.suppress(Exception):
                self._client.set_terminated(run, "FAILED")
            raise
        self._client.set_terminated(run)

    def _log(self, run: str, params: Values, metrics: Numbers = NONE, artifacts: Sequence[Path] = ()) -> None:
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        values = [Metric(name, float(value), now, 0) for name, value in metrics.items()]
        texts = [Param(name, store.param_text(value)) for name, value in params.items()]
        self._client.log_batch(run, metrics=values, params=texts[:PARAMS_PER_CALL])
        for start in range(PARAMS_PER_CALL, len(texts), PARAMS_PER_CALL):
            self._client.log_batch(run, params=texts[start : start + PARAMS_PER_CALL])
        for path in artifacts:
            if path.is_dir():
                self._client.log_artifacts(run, str(path), artifact_path=path.name)
            else:
                self._client.log_artifact(run, str(path))


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
