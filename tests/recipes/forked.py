"""A toy executor: two forked processes take subtrees as they become free."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from stages.config.choices import EXECUTORS
from stages.config.params import Params
from stages.evaluate.measure.evaluator import Evaluator
from stages.evaluate.measure.executors import Executor, Measured, measure_subtree
from stages.evaluate.measure.plan import Subtree

Result = tuple[Mapping[str, float], Mapping[str, Sequence[float]], float]
_job: list[tuple[Evaluator, Sequence[Subtree]]] = []  # what forked processes inherit


def _measured(index: int) -> list[Result]:
    evaluator, subtrees = _job[0]
    return [(m.metrics, m.samples, m.seconds) for m in measure_subtree(evaluator, subtrees[index])]


class Forked:
    parts = 4

    def run(self, evaluator: Evaluator, subtrees: Sequence[Subtree]) -> Iterator[Measured]:
        works = [work for subtree in subtrees for work in subtree.works]
        evaluator.repair.prepare([work.architecture for work in works if work.weights is None])
        _job[:] = [(evaluator, subtrees)]
        with ProcessPoolExecutor(2, get_context("fork")) as pool:
            waiting = {pool.submit(_measured, index): index for index in range(len(subtrees))}
            for done in as_completed(waiting):
                for work, result in zip(subtrees[waiting[done]].works, done.result(), strict=True):
                    yield Measured(work, *result)


def forked(params: Params) -> Executor:
    return Forked()


EXECUTORS.add("forked", forked)
