"""How much faster several workers measure: for real, and by simulation for more than there are here.

    python -m tests.benchmarks.executors measure FOLDER [--workers 1 2] [--repeats 3]
    python -m tests.benchmarks.executors simulate FOLDER [--load SECONDS]

FOLDER is where stages `sample` and `evaluate` ran; nothing in it is changed. The first measures its
designed architectures with Ray, the numbers of workers in turn, each with Ray's own setting up apart: from
asking for actors to a first result of each, which whitens what any architecture cuts. The second plans the
same architectures, and rounds of the search, for 1 to 64 workers: a subtree goes to the worker that is free,
the longest first, and takes what its architectures took in the journal, less the layers that they share.
"""

from __future__ import annotations

import argparse
import heapq
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from stages.config.params import Params, load_params
from stages.evaluate.measure.plan import SUBTREES_EACH, Subtree, Work, subtrees
from stages.evaluate.measure.run import measure_all
from stages.evaluate.results import context, journal
from stages.evaluate.results.journal import Journal, Row
from stages.evaluate.workbench import Workbench, open_workbench
from stages.sample import designs
from tests.benchmarks.machine import Machine

WORKERS = (1, 2, 4, 8, 16, 32, 64)
TRIES = 200


def measured(folder: Path) -> dict[str, Row]:
    """What the journal of stage evaluate holds of its own context, by architecture id."""
    here = folder / "data" / "evaluate"
    wanted = context.read(here / "context.json").digest
    rows = journal.read(here / "journal.jsonl").values()
    return {row.architecture.id: row for row in rows if row.context == wanted and not row.failed}


def with_workers(params: Params, workers: int) -> Params:
    section = params.evaluate.ray.model_copy(update={"workers": workers})
    return params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"ray": section})})


def timed(bench: Workbench, works: Sequence[Work], workers: int) -> tuple[float, float, float]:
    """Seconds of setting up and of measuring, and the CPU seconds of this process meanwhile."""
    import ray

    from stages.evaluate.ray_executor import RayExecutor

    evaluator = bench.evaluator("selection", bench.params.evaluate.measurement)
    shape = bench.network.shape
    most_cut = sorted(works, key=lambda work: work.architecture.overall_ratio(shape), reverse=True)
    began = time.monotonic()
    executor = RayExecutor(with_workers(bench.params, workers))
    with tempfile.TemporaryDirectory() as folder:
        with Journal(Path(folder) / "first.jsonl") as first:
            measure_all(evaluator, executor, most_cut[:workers], first, lambda _: None, "setting up")
        setting_up, began = time.monotonic() - began, time.monotonic()
        busy = time.process_time()
        with Journal(Path(folder) / "journal.jsonl") as kept:
            measure_all(evaluator, executor, works, kept, lambda _: None, f"{workers} workers")
        took, busy = time.monotonic() - began, time.process_time() - busy
    ray.shutdown()
    return setting_up, took, busy


def measure(folder: Path, counts: Sequence[int], repeats: int) -> None:
    """Print seconds by the number of workers."""
    os.chdir(folder)
    params = load_params(Path("params.yaml"))
    if params.evaluate.device == "cpu" or not torch.cuda.is_available():
        torch.set_num_threads(params.evaluate.ray.cores)
    bench = open_workbench(params, Path("data/evaluate"))
    _, designed = designs.read(Path("data/sample/architectures.json"))
    works = [Work(d.architecture, d.design) for d in designed]
    found: dict[int, list[tuple[float, float, float]]] = {count: [] for count in counts}
    for _ in range(repeats):
        for count in counts:
            found[count].append(timed(bench, works, count))
    print(Machine.of("auto"))
    print(f"{len(works)} architectures, median of {repeats}, in turn\n")
    print("| workers | setting up, s | measuring, s | times one | this process, s of CPU | of the time |")
    print("| --- | --- | --- | --- | --- | --- |")
    one = statistics.median(each[1] for each in found[counts[0]])
    for count, each in found.items():
        setting_up, took, busy = (statistics.median(values) for values in zip(*each, strict=True))
        print(
            f"| {count} | {setting_up:.1f} | {took:.1f} | {one / took:.2f} | {busy:.2f} "
            f"| {100 * busy / took:.1f} % |"
        )


def seconds(subtree: Subtree, took: dict[str, float]) -> float:
    """What a subtree takes: of each architecture the layers that it runs itself."""
    whole = subtree.layers[0]
    own = zip(subtree.works, subtree.layers, strict=True)
    return sum(took[work.architecture.id] * layers / whole for work, layers in own)


def makespan(durations: Sequence[float], workers: int) -> float:
    """Seconds until all is done, the longest first to the worker that is free first."""
    free = [0.0] * workers
    for duration in sorted(durations, reverse=True):
        heapq.heappush(free, heapq.heappop(free) + duration)
    return max(free)


def simulate(folder: Path, load: float) -> None:
    """Print what more workers would bring to the designs, and to rounds of the search."""
    rows = measured(folder)
    works = [Work(row.architecture, row.design) for row in rows.values()]
    dense = max(row.seconds for row in rows.values())
    # The journal's seconds leave shared layers out: alone, each takes what is left of the dense one.
    took = {name: dense * (1 - row.overall_ratio) for name, row in rows.items()}
    print(f"{len(works)} architectures, {dense:.2f} s the dense one, {load:.0f} s to load\n")
    print(
        "| workers | designs, s | times one | with loading | a round of 8: waiting | a round of 2 a worker |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    drawn = random.Random(0)
    single: float | None = None
    for workers in WORKERS:
        planned = subtrees(works, SUBTREES_EACH * workers)
        took_all = makespan([seconds(subtree, took) for subtree in planned], workers)
        single = single or took_all
        waiting = []
        for count in (8, 2 * workers):
            shares = []
            for _ in range(TRIES):
                chosen = drawn.choices(list(took.values()), k=count)
                shares.append(1 - sum(chosen) / (workers * makespan(chosen, workers)))
            waiting.append(f"{100 * statistics.mean(shares):.0f} %")
        print(
            f"| {workers} | {took_all:.1f} | {single / took_all:.1f} "
            f"| {(load + single) / (load + took_all):.1f} | {waiting[0]} | {waiting[1]} |"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ways = parser.add_subparsers(dest="way", required=True)
    real = ways.add_parser("measure")
    real.add_argument("folder", type=Path)
    real.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    real.add_argument("--repeats", type=int, default=3)
    simulated = ways.add_parser("simulate")
    simulated.add_argument("folder", type=Path)
    simulated.add_argument("--load", type=float, default=8.0, help="seconds of setting a worker up")
    asked = parser.parse_args(arguments)
    if asked.way == "measure":
        measure(asked.folder, asked.workers, asked.repeats)
    else:
        simulate(asked.folder, asked.load)
    return 0


if __name__ == "__main__":
    sys.exit(main())
