"""Ray's actors find what this process finds, each architecture once, whatever dies on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from stages.config.params import Params, load_params
from stages.evaluate.measure.executors import Executor, Local
from stages.evaluate.measure.plan import Subtree, Work
from stages.evaluate.measure.run import measure_all
from stages.evaluate.network.prefix import SharedPrefix
from stages.evaluate.ray_executor import RayExecutor, Worker, _order
from stages.evaluate.results.journal import Journal, Row, read
from stages.evaluate.workbench import KEPT, Workbench, open_workbench
from stages.files import InputError
from stages.sample import designs
from tests.faults.world import World
from tests.small import REPOSITORY

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
pytestmark = pytest.mark.timeout(120)


@dataclass
class Setting:
    """A tiny model, opened, and what is to be measured of it."""

    params: Params
    bench: Workbench
    works: list[Work]
    expected: dict[str, Row]

    def measure(self, executor: Executor, path: Path, works: list[Work] | None = None) -> dict[str, Row]:
        """Rows by architecture, each of which the journal must hold once."""
        evaluator = self.bench.evaluator("selection", self.params.evaluate.measurement)
        with Journal(path) as journal:
            rows = measure_all(evaluator, executor, works or self.works, journal, lambda _: None, "test")
        assert len(path.read_text().splitlines()) == len(rows)
        return rows


def values(rows: dict[str, Row]) -> Any:
    return {name: (row.key, row.metrics, row.samples) for name, row in rows.items()}


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    """In the folder in which its stages run, on one thread."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        world = World.make(tmp_path_factory.mktemp("ray") / "world")
        cache = {"PRUNECAST_CACHE": str(world.folder / "cache")}
        monkeypatch.setenv("PRUNECAST_CACHE", cache["PRUNECAST_CACHE"])
        monkeypatch.chdir(world.folder)
        for stage in ("sample", "evaluate"):  # no forks: this process has threads
            command = [sys.executable, "-m", f"stages.{stage}", "--no-tracking"]
            subprocess.run(command, env=ENVIRONMENT | cache, check=True)
        params = load_params(Path("params.yaml"))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        bench = open_workbench(params, Path("data/evaluate"))
        _, designed = designs.read(Path("data/sample/architectures.json"))
        works = [Work(d.architecture, d.design) for d in designed]
        found = Setting(params, bench, works, {})
        found.expected = found.measure(Local(), tmp_path_factory.mktemp("local") / "journal.jsonl")
        yield found
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def executor(setting: Setting) -> Iterator[RayExecutor]:
    """Two workers of a Ray of their own."""
    evaluate = setting.params.evaluate
    section = evaluate.model_copy(update={"ray": evaluate.ray.model_copy(update={"workers": 2})})
    yield RayExecutor(setting.params.model_copy(update={"evaluate": section}))
    ray.shutdown()


def test_the_same_rows_as_in_this_process(setting: Setting, executor: RayExecutor, tmp_path: Path) -> None:
    assert values(setting.measure(executor, tmp_path / "journal.jsonl")) == values(setting.expected)


def test_weights_of_their_own_are_made_by_the_workers(
    setting: Setting, executor: RayExecutor, tmp_path: Path
) -> None:
    again = [
        replace(work, weights=setting.bench.weights(work.architecture, again=True))
        for work in setting.works[-3:]
    ]
    found = setting.measure(executor, tmp_path / "ray.jsonl", again)
    assert values(found) == values(setting.measure(Local(), tmp_path / "local.jsonl", again))
    assert all(row.weights for row in found.values())


def test_what_is_to_be_said_of_a_measurement_comes_back_with_it(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU whose memory ends, in a worker: what it prints itself nobody sees."""
    evaluator = setting.bench.evaluator("selection", setting.params.evaluate.measurement)
    kept = {name: (Path("data/evaluate") / name).read_bytes() for name in KEPT}
    worker = Worker(setting.params, str(Path.cwd()), kept, 1, 1)
    original, left = SharedPrefix.log_likelihoods, [1]

    def ends(self: SharedPrefix, *arguments: Any) -> list[torch.Tensor]:
        if left:
            left.pop()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return original(self, *arguments)

    monkeypatch.setattr(SharedPrefix, "log_likelihoods", ends)
    [(_, metrics, _, _, remark)] = worker.measure(_order(evaluator, Subtree.of(setting.works[:1])))
    [row] = [row for row in setting.expected.values() if row.architecture == setting.works[0].architecture]
    assert metrics == pytest.approx(row.metrics, rel=1e-5)
    assert remark == "The GPU's memory ended (CUDA out of memory): batches are halved"


def test_a_worker_that_would_measure_something_else_refuses(
    setting: Setting, executor: RayExecutor, tmp_path: Path
) -> None:
    evaluator = setting.bench.evaluator("selection", setting.params.evaluate.measurement)
    evaluator.digest = "another"
    with (
        Journal(tmp_path / "journal.jsonl") as journal,
        pytest.raises(InputError, match=r"a worker on .* measures in the context .* the stage in another"),
    ):
        measure_all(evaluator, executor, setting.works[:1], journal, lambda _: None, "test")


def test_a_worker_that_is_killed_is_replaced(
    setting: Setting, executor: RayExecutor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed as its first row comes back, by the one signal that nothing can refuse."""
    killed: list[int] = []

    ray.shutdown()  # the workers before, which hold the cores

    class Killing(RayExecutor):
        def _actor(self, evaluator: Any) -> Any:
            made = super()._actor(evaluator)
            if not killed:
                killed.append(ray.get(made.pid.remote()))
            return made

    fresh = Killing(executor._params)
    evaluator = setting.bench.evaluator("selection", setting.params.evaluate.measurement)
    with Journal(tmp_path / "journal.jsonl") as journal:

        def kill(row: Row) -> None:
            if killed and killed[0]:
                os.kill(killed[0], signal.SIGKILL)
                killed[0] = 0

        rows = measure_all(evaluator, fresh, setting.works, journal, kill, "test")
    assert killed == [0]
    assert "A worker of Ray died" in capsys.readouterr().out
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == len(rows)
    assert values(rows) == values(setting.expected)


def test_more_cores_than_there_are_and_no_cluster_are_told(setting: Setting) -> None:
    ray.shutdown()
    evaluate = setting.params.evaluate

    def workers(**changes: Any) -> int:
        section = evaluate.model_copy(update={"ray": evaluate.ray.model_copy(update=changes)})
        return RayExecutor(setting.params.model_copy(update={"evaluate": section})).parts

    with pytest.raises(InputError, match=r"evaluate\.ray\.cores is 4096, and Ray has"):
        workers(cores=4096)
    ray.shutdown()
    with pytest.raises(InputError, match=r"evaluate\.ray\.address is '127.0.0.1:1'.*ray start --head"):
        workers(address="127.0.0.1:1")


def test_a_lost_node_loses_nothing(
    setting: Setting, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cluster of two nodes, one of which goes as the first row comes back."""
    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        second = cluster.add_node(num_cpus=1)
        evaluate = setting.params.evaluate
        section = evaluate.model_copy(
            update={"ray": evaluate.ray.model_copy(update={"address": cluster.address})}
        )
        spread = RayExecutor(setting.params.model_copy(update={"evaluate": section}))
        gone: list[bool] = []
        evaluator = setting.bench.evaluator("selection", setting.params.evaluate.measurement)
        with Journal(tmp_path / "journal.jsonl") as journal:

            def lose(row: Row) -> None:
                if not gone:
                    gone.append(True)
                    cluster.remove_node(second, allow_graceful=False)

            rows = measure_all(evaluator, spread, setting.works, journal, lose, "test")
        assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == len(rows)
        assert values(rows) == values(setting.expected)
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_a_stage_that_is_killed_and_started_again(setting: Setting, tmp_path: Path) -> None:
    """Killed with its workers at its first row: a Ray of its own is left by nobody."""
    ray.shutdown()
    world = World(Path.cwd()).copy(tmp_path / "world")
    params = world.params
    params["evaluate"] |= {"executor": "ray", "ray": {"address": None, "workers": 1, "cores": 1}}
    world.write_params(params)
    journal = world.folder / "data" / "evaluate" / "journal.jsonl"
    journal.unlink()
    cache = {"PRUNECAST_CACHE": str(world.folder / "cache")}

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "stages.evaluate", "--no-tracking"]
        return subprocess.Popen(command, cwd=world.folder, env=ENVIRONMENT | cache)

    killed = start()
    while killed.poll() is None and not (journal.is_file() and journal.stat().st_size):
        time.sleep(0.001)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert start().wait() == 0
    rows = {row.architecture.id: row for row in read(journal).values()}
    assert len(journal.read_text().splitlines()) == len(rows)
    assert values(rows) == values(setting.expected)


def test_a_package_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "stages.evaluate.ray_executor", raising=False)
    from stages.config.choices import EXECUTORS

    monkeypatch.delitem(EXECUTORS._things, "ray", raising=False)
    with pytest.raises(InputError, match=r"pip install 'prunecast\[ray\]'"):
        EXECUTORS["ray"]
