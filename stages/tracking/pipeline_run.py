"""The run of the pipeline in MLflow, which its stages share though each is a process of its own.

Works on the client that it is given, and imports no mlflow.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import datetime
from functools import cached_property
from typing import Any

from stages.config.params import Params
from stages.files import InputError
from stages.tracking import invocation, store

PROCESS = "prunecast.process"
"""Tag of every run: the process that writes it."""
INVOCATION = "prunecast.invocation"
"""Tag of the run of the pipeline: the process of dvc."""
COMMIT = "mlflow.source.git.commit"
DIRTY = "prunecast.git.dirty"


class PipelineRun:
    """Begun or resumed by each stage, and RUNNING while one is open."""

    def __init__(self, client: Any, uri: str, stage: str, params: Params) -> None:
        self._client = client
        self._uri = uri
        self._stage = stage
        self._params = params
        self._outcome = "FINISHED"
        self.experiment = ""
        self.id = ""

    @cached_property
    def tags(self) -> dict[str, str]:
        """Tags of every run of this process, which MLflow's client leaves to us."""
        process = invocation.this_process()
        tags = {PROCESS: str(process), "prunecast.host": process.host, "mlflow.user": invocation.user()}
        tags |= {"mlflow.source.type": "LOCAL", "prunecast.model": self._params.model.source}
        tags |= {"mlflow.source.name": f"stages.{self._stage.replace('-', '_')}"}
        commit = invocation.git_commit()
        return tags if commit is None else tags | {COMMIT: commit[0], DIRTY: str(commit[1]).lower()}

    def begin(self) -> bool:
        """Resume the run of this invocation of the pipeline, or create it; whether it is new.

        Raises:
            InputError: the experiment was deleted, or its artifacts cannot be written.
        """
        self.experiment = self._find_experiment(self._params.tracking.experiment)
        self._bury_the_dead()
        ours = invocation.current()
        for run in self.search(f"tags.`{INVOCATION}` LIKE '{ours.identity.host}:%'"):
            if ours.is_named(run.data.tags[INVOCATION]):
                self._resume(run)
                return False
        self._create(ours)
        return True

    def end(self, error: type[BaseException] | None) -> None:
        """Close the run for this stage; a failure of a stage before stays visible."""
        if error is None:
            self._client.set_terminated(self.id, self._outcome)
            return
        with contextlib.suppress(Exception):  # the error that is on its way tells more
            killed = issubclass(error, KeyboardInterrupt)
            self._client.set_terminated(self.id, "KILLED" if killed else "FAILED")

    def search(self, condition: str) -> Iterator[Any]:
        """The experiment's runs that are not deleted and meet the condition, oldest first."""
        token = None
        while token != "":
            page = self._client.search_runs(
                [self.experiment], condition, max_results=1000, order_by=["start_time"], page_token=token
            )
            yield from page
            token = page.token or ""

    def _find_experiment(self, name: str) -> str:
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            kind = {"mlflow.experimentKind": "custom_model_development"}  # opens MLflow's pages on the runs
            self._client.create_experiment(name, store.artifact_location(self._uri), kind)
            experiment = self._client.get_experiment_by_name(name)
        if experiment.lifecycle_stage != "active":
            raise InputError(
                f"MLflow's experiment {name!r} was deleted; bring it back with "
                f"`mlflow experiments restore --experiment-id {experiment.experiment_id}`, or set "
                "tracking.experiment in params.yaml to another name"
            )
        store.check_artifacts(name, experiment.artifact_location)
        return str(experiment.experiment_id)

    def _bury_the_dead(self) -> None:
        """Set KILLED what processes of this host, now gone, left RUNNING."""
        for run in self.search("attributes.status = 'RUNNING'"):
            process = invocation.ProcessIdentity.parse(run.data.tags.get(PROCESS, ""))
            if process is not None and process.is_dead():
                self._client.set_terminated(run.info.run_id, "KILLED")

    def _resume(self, run: Any) -> None:
        self.id = run.info.run_id
        if run.info.status in ("FAILED", "KILLED"):  # by a stage before, with `dvc repro --keep-going`
            self._outcome = run.info.status
        self._client.set_tag(self.id, PROCESS, self.tags[PROCESS])
        self._client.update_run(self.id, status="RUNNING")

    def _create(self, ours: invocation.Invocation) -> None:
        titles = {"repro": "repro", "exp": f"exp {os.environ.get('DVC_EXP_NAME', '')}".strip()}
        name = f"{titles.get(ours.command, self._stage)} {datetime.now():%Y-%m-%d %H:%M}"
        source = {"mlflow.source.name": f"dvc {ours.command}"} if ours.command else {}
        tags = self.tags | source | {INVOCATION: str(ours.identity)}
        self.id = self._client.create_run(self.experiment, run_name=name, tags=tags).info.run_id
