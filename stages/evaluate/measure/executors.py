"""Who measures: an executor takes subtrees and hands back what was measured, in any order.

One is entered in `stages.config.choices.EXECUTORS` as a function from params to it, under the name by
which ``evaluate.executor`` asks for it. The journal stays with the caller, its one writer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from stages.config.params import Params
from stages.evaluate.measure.evaluator import Evaluator
from stages.evaluate.measure.plan import Subtree, Work
from stages.signals import deferred


@dataclass(frozen=True)
class Measured:
    """What was measured of one work, how many seconds that took, and what is to be said of it."""

    work: Work
    metrics: Mapping[str, float]
    samples: Mapping[str, Sequence[float]]
    seconds: float
    remark: str = ""


class Executor(Protocol):
    """Measures subtrees. `parts` is how many of them keep it busy."""

    @property
    def parts(self) -> int: ...

    def run(self, evaluator: Evaluator, subtrees: Sequence[Subtree]) -> Iterator[Measured]:
        """Each work of each subtree, as it is measured."""


def measure_subtree(evaluator: Evaluator, subtree: Subtree) -> Iterator[Measured]:
    """The works of one subtree, one after the other, in this process.

    A signal that asks to stop waits until the work in hand is measured and, by the caller, recorded.
    """
    for work, branches in zip(subtree.works, subtree.branches, strict=True):
        with deferred("the architecture in hand"):
            start = time.perf_counter()
            metrics, samples = evaluator.measure(work.architecture, branches, work.weights)
            seconds = round(time.perf_counter() - start, 3)
            yield Measured(work, metrics, samples, seconds, evaluator.remark)


class Local:
    """This process, one subtree after the other."""

    parts = 1

    def run(self, evaluator: Evaluator, subtrees: Sequence[Subtree]) -> Iterator[Measured]:
        works = [work for subtree in subtrees for work in subtree.works]
        evaluator.repair.prepare([work.architecture for work in works if work.weights is None])
        for subtree in subtrees:
            yield from measure_subtree(evaluator, subtree)


def local(params: Params) -> Executor:
    """The executor `local`."""
    return Local()
