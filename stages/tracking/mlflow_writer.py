"""Letters become runs of MLflow: the one place that asks a store for anything.

With `registry` the only module that calls mlflow; the tracker imports it when it is entered.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from stages.tracking import registry, sqlite_store, store
from stages.tracking.names import KEY, MEASURED, NONE, OBJECTIVE, RECORD
from stages.tracking.outbox import Begin, Kind, Letter
from stages.tracking.pipeline_run import COMMIT, DIRTY, PROCESS, Experiment, compared
from stages.tracking.sqlite_store import StoreError

PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"
PARAMS_PER_CALL = 100


class MlflowWriter:
    """Delivers letters to one store, in one thread; what is delivered twice is logged once."""

    def __init__(
        self,
        mlflow: ModuleType,
        uri: str,
        own: Begin,
        step: Callable[[], None],
        tell: Callable[[str], None],
    ) -> None:
        """`own` is the run of this process.

        `step` is called as the store gets on with a letter, `tell` with what the user must know.
        """
        self._mlflow = mlflow
        self._uri = uri
        self._own = own
        self._step = step
        self._tell = tell
        self._connected: Any = None
        self._experiments: dict[str, Experiment] = {}
        self._parents: dict[Begin, str] = {}
        self._tried: set[Letter] = set()
        self._outcome = "FINISHED"
        self._run = ""
        self._kinds: Mapping[Kind, Callable[[Letter], str]] = {
            Kind.BEGIN: self._begin,
            Kind.RUN: self._child_alone,
            Kind.TAGS: self._tag,
            Kind.STAGE: self._stage,
            Kind.PREDICTOR: self._predictor,
            Kind.MODEL: self._model,
            Kind.BURY: self._bury,
            Kind.END: self._end,
        }

    def deliver(self, letter: Letter) -> str:
        """Log what the letter asks for; returns where it is found, where that is asked for.

        Raises:
            Exception: whatever mlflow and the driver of the store raise.
        """
        try:
            return self._kinds[letter.kind](letter)
        finally:
            self._tried.add(letter)

    def is_logged(self, begin: Begin, key: str) -> bool:
        """Whether a run of that key is known to be in the store."""
        experiment = self._experiments.get(begin.experiment)
        return experiment is not None and key in (experiment.logged or {})

    @property
    def run(self) -> str:
        """The run of the pipeline of this process, once it is begun."""
        return self._run

    @property
    def _client(self) -> Any:
        if self._connected is None:
            path = store.sqlite_file(self._uri)
            if path is not None:
                self._prepare(path)
            self._connected = self._mlflow.MlflowClient(tracking_uri=self._uri)
        return self._connected

    def _prepare(self, path: Path) -> None:
        from alembic.script import ScriptDirectory

        (here,) = self._mlflow.__path__
        (version,) = ScriptDirectory(f"{here}/store/db_migrations").get_heads()

        def make(new: Path) -> None:
            self._mlflow.MlflowClient(tracking_uri=f"{store.SQLITE}{new}").search_experiments(max_results=1)

        told = sqlite_store.prepare(path, make, version)
        told += sqlite_store.at_home(path, self._uri)
        if told:
            self._tell(told)

    def _experiment(self, begin: Begin) -> Experiment:
        name = begin.experiment
        if name not in self._experiments:
            self._experiments[name] = Experiment(self._client, self._uri, name, self._step)
        return self._experiments[name]

    def _parent(self, begin: Begin) -> str:
        """The run of the pipeline, created where no stage could create it when it ran."""
        if begin not in self._parents:
            found = self._experiment(begin).of(begin)
            run = found.info.run_id if found else self._created(begin, begin.name, begin.tags, begin.at)
            if found is None or not found.data.params:
                self._log(run, begin.at, compared(begin.params))
            self._parents[begin] = run
        return self._parents[begin]

    def _created(self, begin: Begin, name: str, tags: Mapping[str, str], at: int) -> str:
        experiment = self._experiment(begin).id
        created = self._client.create_run(experiment, start_time=at, run_name=name, tags=dict(tags))
        if not created.info.run_id:
            raise StoreError("its answers are not those of MLflow")
        return str(created.info.run_id)

    def _begin(self, letter: Letter) -> str:
        begin = letter.begin
        self._experiment(begin).show(begin.views)
        before = self._experiment(begin).of(begin)
        run = self._parent(begin)
        if before is not None:
            if before.info.status in ("FAILED", "KILLED"):  # by a stage before, with `dvc repro --keep-going`
                self._outcome = before.info.status
            self._client.set_tag(run, PROCESS, begin.own[PROCESS])
            self._client.update_run(run, status="RUNNING")
        self._run = run
        return run

    def _end(self, letter: Letter) -> str:
        run, status = self._parent(letter.begin), letter.content["status"]
        if letter.begin is self._own:
            status = self._outcome if status == "FINISHED" else status
        elif run == self._run:  # of a stage before this one, which goes on with the run
            self._outcome = self._outcome if status == "FINISHED" else status
            return ""
        elif status == "FINISHED" and self._client.get_run(run).info.status == "FAILED":
            return ""
        self._client.set_terminated(run, status, end_time=letter.at)
        return ""

    def _bury(self, letter: Letter) -> str:
        self._experiment(letter.begin).bury_the_dead()
        return ""

    def _stage(self, letter: Letter) -> str:
        content, run = letter.content, self._parent(letter.begin)
        self._log(run, letter.at, NONE, content["metrics"], letter.files, content.get("step", 0))
        if note := content.get("note"):
            self._client.set_tag(run, NOTE, note)
        return ""

    def _tag(self, letter: Letter) -> str:
        from mlflow.entities import RunTag

        key = letter.content["key"]
        run = self._experiment(letter.begin).load().get(key)
        if run is None:
            raise StoreError(f"no evaluation with key {key!r} is logged")
        tags = [RunTag(name, value) for name, value in letter.content["tags"].items()]
        self._client.log_batch(run, tags=tags)
        return ""

    def _child_alone(self, letter: Letter) -> str:
        if _key(letter) not in self._experiment(letter.begin).load():
            with self._child(letter, letter.files):
                pass
        return ""

    def _predictor(self, letter: Letter) -> str:
        import pandas

        folder, *artifacts = letter.files
        content = letter.content
        example, forecast = (pandas.DataFrame(**content[name]) for name in ("example", "forecast"))

        def add(run: str) -> str:
            return self._registry.add_predictor(
                content["registered"], run, folder, example, forecast, self._origin(letter)
            )

        return self._registered(letter, add, tuple(artifacts))

    def _model(self, letter: Letter) -> str:
        content = letter.content
        folder = Path(content["folder"])
        if not folder.is_dir() or registry.digest_of(folder) != content["digest"]:
            self._tell(f"the model that was to be registered is in {folder} no more, and is passed over")
            return ""

        def add(run: str) -> str:
            tags = self._origin(letter) | content["run"]["tags"]
            return self._registry.add_folder(content["registered"], run, folder, content["source"], tags)

        return self._registered(letter, add)

    def _registered(self, letter: Letter, add: Callable[[str], str], artifacts: tuple[Path, ...] = ()) -> str:
        """The version with that digest, or a new one; the champion, unless a better one is."""
        content = letter.content
        name, registry = content["registered"], self._registry
        version = registry.find(name, content["digest"])
        if version is None:
            with self._child(letter, artifacts) as run:
                version = add(run)
        elif (begun := self._experiment(letter.begin).begun.pop(_key(letter), None)) is not None:
            self._client.set_terminated(begun)
        tags = content["run"]["tags"]
        known = {key: tags[key] for key in (OBJECTIVE, MEASURED) if key in tags}
        if told := registry.crown(name, version, content.get("description"), known):
            self._tell(told)
        return registry.uri(name, version)

    @property
    def _registry(self) -> registry.ModelRegistry:
        return registry.ModelRegistry(self._client, self._uri)

    @staticmethod
    def _origin(letter: Letter) -> dict[str, str]:
        commit = {tag: text for tag, text in letter.begin.own.items() if tag in (COMMIT, DIRTY)}
        return commit | {registry.DIGEST: letter.content["digest"]}

    @contextlib.contextmanager
    def _child(self, letter: Letter, artifacts: tuple[Path, ...]) -> Iterator[str]:
        """A run below that of the pipeline, FINISHED when the body is; one that was begun is gone on with."""
        about, begin, key = letter.content["run"], letter.begin, _key(letter)
        experiment = self._experiment(begin)
        logged = experiment.load()
        run = experiment.begun.get(key) or (experiment.find(key) if letter in self._tried else None)
        if run is None:
            tags = {**begin.own, PARENT: self._parent(begin), "dvc.stage": begin.stage, **about["tags"]}
            run = self._created(begin, about["name"], tags, letter.at)
        experiment.begun[key] = run
        try:
            self._log(run, letter.at, about["params"], about["metrics"], artifacts)
            yield run
        except BaseException:
            with contextlib.suppress(Exception):
                self._client.set_terminated(run, "FAILED")
            raise
        self._client.set_terminated(run, end_time=letter.at)
        logged[key] = experiment.begun.pop(key)

    def _log(
        self,
        run: str,
        at: int,
        params: Mapping[str, Any],
        metrics: Mapping[str, float] = NONE,
        artifacts: tuple[Path, ...] = (),
        step: int = 0,
    ) -> None:
        """Log onto a run; the same again changes nothing."""
        from mlflow.entities import Metric, Param

        values = [Metric(name, float(value), at, step) for name, value in metrics.items()]
        texts = [Param(name, store.param_text(value)) for name, value in params.items()]
        self._client.log_batch(run, metrics=values, params=texts[:PARAMS_PER_CALL])
        for start in range(PARAMS_PER_CALL, len(texts), PARAMS_PER_CALL):
            self._client.log_batch(run, params=texts[start : start + PARAMS_PER_CALL])
        for path in artifacts:
            if path.is_dir():
                self._client.log_artifacts(run, str(path), artifact_path=path.name)
            else:
                self._client.log_artifact(run, str(path))


def _key(letter: Letter) -> str:
    tags = letter.content["run"]["tags"]
    return str(tags.get(KEY) or tags[RECORD])
