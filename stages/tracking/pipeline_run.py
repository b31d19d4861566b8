"""The run of the pipeline in MLflow, which its stages share though each is a process of its own.

Works on the client that it is given, and imports no mlflow.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from stages.config.params import Params
from stages.tracking import invocation, names, store, views
from stages.tracking.invocation import ProcessIdentity
from stages.tracking.names import KEY, RECORD
from stages.tracking.outbox import Begin
from stages.tracking.sqlite_store import StoreError
from stages.tracking.views import TAG

PROCESS = "prunecast.process"
"""Tag of every run: the process that writes it."""
INVOCATION = "prunecast.invocation"
"""Tag of the run of the pipeline: the process of dvc."""
COMMIT = "mlflow.source.git.commit"
DIRTY = "prunecast.git.dirty"
PARAMS = "prunecast.params"
"""Tag of the run of the pipeline: all params as JSON, as far as a tag is long."""
OBJECTIVES = "search.objective."
COMPARED = {
    "profile", "model.source", "model.revision",
    "budget.overall_ratio", "budget.size_bytes", "budget.prefill_ms", "budget.decode_ms",
    "sample.seed", "sample.bundled", "sample.free", "sample.spread", "sample.single_site_ratios",
    "evaluate.importance", "evaluate.reconstruction.method", "evaluate.calibration.samples",
    "evaluate.calibration.sequence_length", "evaluate.calibration.conversations",
    "evaluate.measurement.windows",
    "train_predictor.model", "search.sampler", "search.trials", "search.rounds", "search.per_round",
    "search.seed", "search.repair_again", "export.recovery.method", "export.recovery.tokens", "export.dtype",
}  # fmt: skip
"""The params, as `store.flatten` names them, that a run of the pipeline shows."""


def describe(stage: str, run_params: Params) -> Begin:
    """The run of the pipeline that this process belongs to."""
    ours, process = invocation.current(), invocation.this_process()
    own = {PROCESS: str(process), "prunecast.host": process.host, "mlflow.user": invocation.user()}
    own |= {"mlflow.source.type": "LOCAL", "prunecast.model": run_params.model.source}
    own |= {"mlflow.source.name": f"stages.{stage.replace('-', '_')}"}
    commit = invocation.git_commit()
    if commit is not None:
        own |= {COMMIT: commit[0], DIRTY: str(commit[1]).lower()}
    title = names.title(run_params.model.source, run_params.budget.overall_ratio)
    titles = {"repro": title, "exp": f"{title} · exp {os.environ.get('DVC_EXP_NAME', '')}".strip()}
    every = json.dumps(run_params.model_dump(mode="json"), ensure_ascii=False, separators=(",", ":"))
    source = {"mlflow.source.name": f"dvc {ours.command}"} if ours.command else {}
    return Begin(
        experiment=run_params.tracking.experiment,
        stage=stage,
        invocation=str(ours.identity),
        name=titles.get(ours.command, f"{title} · {stage}"),
        tags=own | source | {INVOCATION: str(ours.identity), PARAMS: every[: names.TAG_LENGTH]},
        own=own,
        params=store.flatten(run_params.model_dump(mode="json")),
        at=int(time.time() * 1000),
        views=views.views(run_params),
    )


def compared(params: Mapping[str, str]) -> dict[str, str]:
    """The params that runs are compared by; all of them are in the run's tag `PARAMS`."""
    return {key: value for key, value in params.items() if key in COMPARED or key.startswith(OBJECTIVES)}


class Experiment:
    """An experiment of a store: its runs of the pipeline, and the runs that it holds whole, by key."""

    def __init__(self, client: Any, uri: str, name: str, step: Callable[[], None]) -> None:
        """Find or make it; `step` is called after every page of a search.

        Raises:
            StoreError: the experiment was deleted.
        """
        self._client = client
        self._step = step
        self.logged: dict[str, str] | None = None
        """Runs by key, those that are FINISHED alone, for only they were logged whole; None until `load`."""
        self.begun: dict[str, str] = {}
        """Runs by key that a process began, and ended before they were whole."""
        found = client.get_experiment_by_name(name)
        if found is None:
            kind = {"mlflow.experimentKind": "custom_model_development"}  # opens MLflow's pages on the runs
            client.create_experiment(name, store.artifact_location(uri), kind)
            found = client.get_experiment_by_name(name)
        if found.lifecycle_stage == "deleted":
            raise StoreError(
                f"its experiment {name!r} was deleted; bring it back with "
                f"`mlflow experiments restore --experiment-id {found.experiment_id}`, or set "
                "tracking.experiment in params.yaml to another name"
            )
        self.id = str(found.experiment_id)
        if not self.id:
            raise StoreError("its answers are not those of MLflow")

    def show(self, views: Mapping[str, str]) -> None:
        """Keep the views as tags of the experiment, where they are not there yet."""
        there = self._client.get_experiment(self.id).tags
        for name, state in views.items():
            if there.get(f"{TAG}{name}") != state:
                self._client.set_experiment_tag(self.id, f"{TAG}{name}", state)

    def search(self, condition: str) -> Iterator[Any]:
        """The runs that are not deleted and meet the condition, oldest first."""
        token = None
        while token != "":
            page = self._client.search_runs(
                [self.id], condition, max_results=1000, order_by=["start_time"], page_token=token
            )
            self._step()
            yield from page
            token = page.token or ""

    def load(self) -> dict[str, str]:
        """Find `logged` and `begun`; what was begun by the dead and is logged whole beside is deleted."""
        if self.logged is None:
            logged: dict[str, str] = {}
            begun: dict[str, str] = {}
            for tag in (KEY, RECORD):
                for run in self.search(f"tags.`{tag}` LIKE '%'"):
                    if run.info.status == "FINISHED":
                        logged.setdefault(run.data.tags[tag], run.info.run_id)
                    elif run.info.status != "RUNNING" or _is_left(run):
                        begun[run.data.tags[tag]] = run.info.run_id
            for key in begun.keys() & logged.keys():
                self._client.delete_run(begun.pop(key))
            self.logged, self.begun = logged, begun
        return self.logged

    def find(self, key: str) -> str | None:
        """A run of that key that this process began without hearing of it."""
        for tag in (KEY, RECORD):
            for run in self.search(f"tags.`{tag}` = '{key}'"):
                return str(run.info.run_id)
        return None

    def of(self, begin: Begin) -> Any | None:
        """The run of the pipeline, if it was created."""
        ours = ProcessIdentity.parse(begin.invocation)
        for run in self.search(f"tags.`{INVOCATION}` LIKE '{begin.invocation.partition(':')[0]}:%'"):
            found = ProcessIdentity.parse(run.data.tags[INVOCATION])
            if ours is not None and found is not None and ours.is_same(found):
                return run
        return None

    def bury_the_dead(self) -> None:
        """Set KILLED what processes of this host, now gone, left RUNNING."""
        for run in self.search("attributes.status = 'RUNNING'"):
            if _is_left(run):
                self._client.set_terminated(run.info.run_id, "KILLED")


def _is_left(run: Any) -> bool:
    process = ProcessIdentity.parse(run.data.tags.get(PROCESS, ""))
    return process is not None and process.is_dead()
