"""Several GPUs, or several processes of some cores each: one Ray actor for each, with a network of its own.

Ray schedules, ships and watches; what is decided here is what an actor does and which subtree is whose. An
actor opens the model once, in the folder and with the params of the stage that asks; a subtree goes to the
actor that is free, the longest first, and each architecture comes back as it is measured. An actor that
dies, with its node or alone, is replaced, and what it had not handed back is measured again. Only the caller
writes the journal.
"""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.architecture import Architecture
from stages.config import extensions
from stages.config.params import Measurement, Params, Part
from stages.evaluate.measure.evaluator import Evaluator
from stages.evaluate.measure.executors import Executor, Measured, measure_subtree
from stages.evaluate.measure.plan import SUBTREES_EACH, Subtree, Work
from stages.files import InputError
from stages.stage import DATA

os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # 40 s each, where `auto` finds a cluster gone
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
try:
    import ray as _ray
except ModuleNotFoundError as error:
    raise InputError(
        "evaluate.executor is 'ray', and the package ray is not installed: pip install 'prunecast[ray]', or "
        "set evaluate.executor to local"
    ) from error

PATIENCE_S = 120.0
"""Seconds without a result after which it is said what may be the matter."""
LIVES = 3
"""Times that a worker may die before it has measured anything, and be replaced."""

Result = tuple[int, Mapping[str, float], Mapping[str, Sequence[float]], float, str]
"""Which work of a subtree it was, and what `Measured` holds of it."""


@dataclass(frozen=True)
class Order:
    """A subtree as it travels: widths, the depths at which others branch off, and which has own weights."""

    part: Part
    measurement: Measurement
    digest: str
    """The evaluator's: an actor that measures in another context refuses."""
    widths: Sequence[Any]
    branches: Sequence[frozenset[int]]
    weights: Sequence[str]
    """Digests of weights of their own, or nothing."""


class Worker:
    """What an actor holds: the opened model, and an evaluator for each part and measurement."""

    def __init__(
        self, params: Params, folder: str, kept: Mapping[str, bytes], threads: int | None, sharing: int
    ) -> None:
        """Open the model in that folder, with files `kept` of before; so many share its host's memory."""
        import torch

        from stages.evaluate.workbench import open_workbench

        os.chdir(folder)
        extensions.load(params.extensions)
        if threads is not None:
            torch.set_num_threads(threads)
        with tempfile.TemporaryDirectory() as name:
            for file, content in kept.items():
                (Path(name) / file).write_bytes(content)
            self._bench = open_workbench(params, Path(name), sharing=sharing)
        self._evaluators: dict[str, Evaluator] = {}

    def pid(self) -> int:
        """The process that it is."""
        return os.getpid()

    def measure(self, order: Order) -> Iterator[Result]:
        """Each work of a subtree, as it is measured."""
        evaluator = self._evaluator(order)
        works = [self._work(*each) for each in zip(order.widths, order.weights, strict=True)]
        subtree = Subtree(tuple(works), tuple(order.branches))
        for index, found in enumerate(measure_subtree(evaluator, subtree)):
            yield index, found.metrics, found.samples, found.seconds, found.remark

    def _evaluator(self, order: Order) -> Evaluator:
        key = f"{order.part} {order.measurement.model_dump_json()}"
        if key not in self._evaluators:
            self._evaluators[key] = self._bench.evaluator(order.part, order.measurement)
        found = self._evaluators[key]
        if found.digest != order.digest:
            raise InputError(
                f"a worker on {os.uname().nodename} measures in the context {found.digest}, and the stage in "
                f"{order.digest}: its model, texts, device or code are others. Give all nodes the same"
            )
        return found

    def _work(self, widths: Any, own: str) -> Work:
        architecture = Architecture.from_json(widths)
        if not own:
            return Work(architecture, "")
        weights = next(
            made for made in (self._bench.weights(architecture, again) for again in (True, False))
            if made.digest == own
        )  # fmt: skip
        return Work(architecture, "", weights)


@dataclass
class _Task:
    """A subtree in the hands of an actor."""

    actor: Any
    subtree: Subtree
    done: set[int] = field(default_factory=set)


class RayExecutor:
    """Hands subtrees to actors, which are started when something is measured and live as long as the stage.

    Raises:
        InputError: there is no cluster at the address, or no worker has its cores.
    """

    def __init__(self, params: Params) -> None:
        alone = {"evaluate": params.evaluate.model_copy(update={"executor": "local"})}
        self._params = params.model_copy(update=alone)
        self._section = params.evaluate.ray
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}
        """Workers that open their models yet, or wait for room, by what they will answer."""
        self._deaths = 0
        self._connect()
        self._workers = self._count()

    @property
    def parts(self) -> int:
        return SUBTREES_EACH * self._workers

    def run(self, evaluator: Evaluator, subtrees: Sequence[Subtree]) -> Iterator[Measured]:
        """Each work of each subtree, as it is measured.

        Raises:
            InputError: a worker refuses, or workers die before they measure anything.
        """
        waiting = deque(sorted(subtrees, key=lambda subtree: sum(subtree.layers), reverse=True))
        tasks: dict[Any, _Task] = {}
        told = False
        while waiting and len(self._idle) + len(self._starting) < self._workers:
            self._start_worker(evaluator)
        try:
            while waiting or tasks:
                while waiting and self._idle:
                    task = _Task(self._idle.pop(), waiting.popleft())
                    order = _order(evaluator, task.subtree)
                    tasks[task.actor.measure.options(num_returns="streaming").remote(order)] = task
                found, _ = _ray.wait(
                    [*tasks, *self._starting], num_returns=1, timeout=None if told else PATIENCE_S
                )
                if not found:
                    told = True
                    print(
                        "Ray has no free cores or GPUs for a worker yet (`ray status` says why)", flush=True
                    )
                elif found[0] in self._starting:
                    self._started(found[0], evaluator)
                elif (result := self._next(found[0], tasks, waiting, evaluator)) is not None:
                    yield result
        finally:
            for task in tasks.values():  # the stage ends, or somebody stopped it
                _ray.kill(task.actor)

    def _start_worker(self, evaluator: Evaluator) -> None:
        """Where it finds no room it waits for it, while others work."""
        actor = self._actor(evaluator)
        self._starting[actor.pid.remote()] = actor

    def _started(self, ready: Any, evaluator: Evaluator) -> None:
        actor = self._starting.pop(ready)
        try:
            _ray.get(ready)
        except _ray.exceptions.RayActorError as error:
            self._died(error, evaluator)
        else:
            self._idle.append(actor)

    def _next(
        self, ready: Any, tasks: dict[Any, _Task], waiting: deque[Subtree], evaluator: Evaluator
    ) -> Measured | None:
        """What came of a task: a result, its end, or that its worker died and the rest of it waits again."""
        task = tasks[ready]
        try:
            index, *found = _ray.get(next(ready))
        except StopIteration:
            del tasks[ready]
            self._idle.append(task.actor)
        except _ray.exceptions.RayActorError as error:
            del tasks[ready]
            if rest := [w for i, w in enumerate(task.subtree.works) if i not in task.done]:
                waiting.appendleft(Subtree.of(rest))
            print("A worker of Ray died: another measures what it had not handed back", flush=True)
            self._died(error, evaluator)
        except _ray.exceptions.RayTaskError as error:
            raise _cause(error) from error
        else:
            self._deaths = 0
            task.done.add(index)
            return Measured(task.subtree.works[index], *found)
        return None

    def _died(self, error: Exception, evaluator: Evaluator) -> None:
        """Start another worker.

        Raises:
            InputError: too many died without a result between them.
        """
        self._deaths += 1
        if self._deaths > LIVES * self._workers:
            raise InputError(
                f"{self._deaths} workers of Ray died, the last before it had measured anything: {error}"
            ) from error
        self._start_worker(evaluator)

    def _count(self) -> int:
        """Workers: a GPU each, or as many as cores allow."""
        there: Mapping[str, float] = _ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus, cores = int(there.get("GPU", 0)), int(there.get("CPU", 0))
        on_cpu = self._params.evaluate.device == "cpu" or not gpus
        most = cores // self._section.cores if on_cpu else gpus
        if not most:
            raise InputError(
                f"params.yaml: evaluate.ray.cores is {self._section.cores}, and Ray has {cores}; lower it"
            )
        return min(most, self._section.workers or most)

    def _connect(self) -> None:
        if _ray.is_initialized():
            return
        code = str(Path(__file__).parents[2])
        paths = os.pathsep.join(filter(None, [code, os.environ.get("PYTHONPATH")]))
        kept = {k: v for k, v in os.environ.items() if k.startswith(("PRUNECAST_", "HF_", "TRANSFORMERS_"))}
        try:
            _knock(self._section.address)
            _ray.init(
                address=self._section.address or "local",
                include_dashboard=False if self._section.address is None else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": {**kept, "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"}},
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(
                f"params.yaml: evaluate.ray.address is {self._section.address!r}, and Ray finds no cluster "
                f"there ({str(error).splitlines()[0]}); start one with `ray start --head`, or set it to null"
            ) from error

    def _actor(self, evaluator: Evaluator) -> Any:
        from stages.evaluate.workbench import KEPT

        on_gpu = evaluator.network.device.type == "cuda"
        cores = self._section.cores
        options = {"num_gpus": 1, "num_cpus": 0} if on_gpu else {"num_cpus": cores}
        remote = _ray.remote(Worker).options(**options)
        kept = {name: (DATA / "evaluate" / name).read_bytes() for name in KEPT}
        threads = None if on_gpu else cores
        return remote.remote(self._params, str(Path.cwd()), kept, threads, self._workers)


def _knock(address: str | None) -> None:
    """Connect to an address of a host and a port: Ray itself tries for minutes where nobody listens.

    Raises:
        OSError: nobody does.
    """
    host, _, port = (address or "").rpartition(":")
    if host:
        socket.create_connection((host, int(port)), timeout=10).close()


def _order(evaluator: Evaluator, subtree: Subtree) -> Order:
    selection = evaluator.selection
    return Order(
        selection.part,
        selection.measurement,
        evaluator.digest,
        [work.architecture.to_json() for work in subtree.works],
        subtree.branches,
        ["" if work.weights is None else work.weights.digest for work in subtree.works],
    )


def _cause(error: Any) -> BaseException:
    """What a worker raised: an error for the user as it is, anything else with its traceback."""
    cause = error.cause
    return cause if isinstance(cause, InputError) else error


def ray(params: Params) -> Executor:
    """The executor `ray`."""
    return RayExecutor(params)
