"""MLflow: one run per pipeline run, and below it one per evaluation, predictor and search.

MLflow is a projection of the journal: an evaluation is logged once, by its key, and what a kill
kept out of MLflow is logged at the next start. With tracking_registry the only module that imports
mlflow, when a tracker is entered and never on import.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

from stages.config.params import Params
from stages.files import InputError
from stages.tracking import registry, store
from stages.tracking.pipeline_run import COMMIT, DIRTY, PipelineRun
from stages.tracking.store import without_password

if TYPE_CHECKING:
    import pandas

Values = Mapping[str, str | float | int]
Metrics = Mapping[str, float]
Tags = Mapping[str, str]
NONE: Mapping[str, Any] = MappingProxyType({})

KEY = "prunecast.key"
PARENT = "mlflow.parentRunId"
PARAMS_PER_CALL = 100


@dataclass(frozen=True)
class Evaluation:
    """What tracking needs to know of one measured architecture."""

    key: str
    architecture: str
    design: str
    stage: str
    params: Values
    """Ratios by site, e.g. `{"ratio.03.attention": 0.333}`."""
    metrics: Metrics
    """E.g. `{"overall_ratio": 0.249, "ppl.wikipedia": 31.2}`."""
    tags: Tags = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of its run, e.g. `bundled 3f2ad1e0 24.9 %`."""
        ratio = self.metrics.get("overall_ratio")
        return f"{self.design} {self.architecture[:8]}" + ("" if ratio is None else f" {100 * ratio:.1f} %")


class Tracker:
    """One stage's view of MLflow: `with Tracker.open("evaluate", params) as tracker:`.

    While it is open, the run of the pipeline is RUNNING; then FINISHED, FAILED after an exception
    or KILLED after an interrupt. What a killed process left RUNNING is set KILLED by the next one.
    """

    def __init__(self, stage: str, params: Params) -> None:
        self.stage = stage
        self.uri = store.uri()
        self._params = params

    @classmethod
    def open(cls, stage: str, params: Params) -> Tracker:
        """A tracker that reaches for the store when it is entered."""
        return cls(stage, params)

    def __enter__(self) -> Tracker:
        """Reach the store and begin, or resume, the run of the pipeline.

        Raises:
            InputError: mlflow is not installed, or the store cannot be used.
        """
        try:
            with store.environment(store.BRIEF), store.exclusive(self.uri):
                self._mlflow = _import_mlflow()
                self._client = self._mlflow.MlflowClient(tracking_uri=self.uri)
                self._registry = registry.Registry(self._client, self.uri)
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

    def log_evaluation(self, evaluation: Evaluation) -> None:
        """Log a measured architecture as a run of its own, unless its key is logged already.

        Raises:
            ValueError: a metric is not a finite number.
        """
        if evaluation.key in self._logged:
            return
        tags = {
            KEY: evaluation.key,
            "prunecast.architecture": evaluation.architecture,
            "prunecast.design": evaluation.design,
            "dvc.stage": evaluation.stage,
        }
        # MLflow sorts parameters as text: with three decimals each, ratios sort as numbers too.
        params = {k: f"{v:.3f}" if isinstance(v, float) else v for k, v in evaluation.params.items()}
        with self._run(evaluation.name, params, evaluation.metrics, tags | dict(evaluation.tags)) as run:
            pass
        self._logged[evaluation.key] = run

    def logged_keys(self) -> frozenset[str]:
        """Keys of the evaluations that MLflow holds whole; deleted runs do not count."""
        return frozenset(self._logged)

    def tag_evaluations(self, keys_to_tags: Mapping[str, Tags]) -> None:
        """Tag logged evaluations, those of earlier runs of the pipeline too, by key.

        Raises:
            KeyError: no evaluation of that key is logged.
        """
        from mlflow.entities import RunTag

        for key, tags in keys_to_tags.items():
            if key not in self._logged:
                raise KeyError(f"no evaluation with key {key!r} is logged; call log_evaluation first")
            self._client.log_batch(self._logged[key], tags=[RunTag(k, v) for k, v in tags.items()])

    def log_predictor(
        self,
        name: str,
        folder: Path,
        example: pandas.DataFrame,
        forecast: pandas.DataFrame,
        params: Values,
        metrics: Metrics,
        artifacts: Sequence[Path] = (),
    ) -> str:
        """Log a saved predictor as a run of its own and register it as `prunecast-NAME`.

        `example` features and their `forecast` tell its signature. It loads with
        `mlflow.pyfunc.load_model` through `stages.train_predictor.pyfunc`, whose code goes with it.

        Returns:
            The URI of the new version, `models:/prunecast-NAME/VERSION`. Until the next one is
            logged, `models:/prunecast-NAME@champion` is the same model.
        """
        with self._run(f"predictor {name}", params, metrics, NONE, artifacts) as run:
            return self._registry.add_predictor(
                f"prunecast-{name}", run, folder, example, forecast, self._origin
            )

    def log_model(self, name: str, folder: Path, metrics: Metrics, tags: Tags, description: str = "") -> str:
        """Log an exported Hugging Face folder as a run of its own and register it as `prunecast-NAME`.

        The same weights are stored once: exported again, their version becomes the champion again.
        `description` is Markdown that MLflow shows beside the version. Returns the version's URI.
        """
        name, digest = f"prunecast-{name}", registry.digest_of(folder)
        version = self._registry.find(name, digest)
        if version is not None:
            return self._registry.make_champion(name, version, description)
        tags = {**tags, registry.DIGEST: digest}
        source = self._params.model.source
        with self._run(f"model {digest[:8]}", NONE, metrics, tags) as run:
            return self._registry.add_folder(name, run, folder, source, self._origin | tags, description)

    def log_stage(
        self, metrics: Metrics = NONE, params: Values = NONE, artifacts: Sequence[Path] = ()
    ) -> None:
        """Log onto the run of the pipeline. A folder goes whole, under its own name."""
        store.check_metrics(self.stage, metrics)
        self._log(self._pipeline.id, params, metrics, artifacts)

    def child(
        self, name: str, params: Values, metrics: Metrics, artifacts: Sequence[Path] = (), tags: Tags = NONE
    ) -> None:
        """Log a run below that of the pipeline, e.g. a search with its table of trials."""
        with self._run(name, params, metrics, tags, artifacts):
            pass

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
    def _run(
        self, name: str, params: Values, metrics: Metrics, tags: Tags, artifacts: Sequence[Path] = ()
    ) -> Iterator[str]:
        """A run below that of the pipeline, FINISHED when the body is."""
        store.check_metrics(name, metrics)
        tags = self._pipeline.tags | {PARENT: self._pipeline.id, "dvc.stage": self.stage} | dict(tags)
        run = str(self._client.create_run(self._pipeline.experiment, run_name=name, tags=tags).info.run_id)
        try:
            self._log(run, params, metrics, artifacts)
            yield run
        except BaseException:
            with contextlib.suppress(Exception):
                self._client.set_terminated(run, "FAILED")
            raise
        self._client.set_terminated(run)

    def _log(self, run: str, params: Values, metrics: Metrics = NONE, artifacts: Sequence[Path] = ()) -> None:
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


class _Disabled(Tracker):
    """The interface of a tracker, and nothing else."""

    def __init__(self) -> None: ...

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None: ...

    def log_evaluation(self, evaluation: Evaluation) -> None: ...

    def logged_keys(self) -> frozenset[str]:
        return frozenset()

    def tag_evaluations(self, keys_to_tags: Mapping[str, Tags]) -> None: ...

    def log_predictor(self, name: str, *_: Any, **__: Any) -> str:
        return ""

    def log_model(self, name: str, *_: Any, **__: Any) -> str:
        return ""

    @property
    def run(self) -> str:
        return ""

    def log_stage(self, *_: Any, **__: Any) -> None: ...

    def child(self, *_: Any, **__: Any) -> None: ...


def disabled() -> Tracker:
    """A tracker that does nothing, for `--no-tracking`."""
    return _Disabled()


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


def open_tracker(stage: str, params: Params, *, enabled: bool) -> Tracker:
    """The tracker of a stage, to be entered with `with`; one that does nothing unless `enabled`."""
    return Tracker.open(stage, params) if enabled else disabled()
