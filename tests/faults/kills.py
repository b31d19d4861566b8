"""Kills at random moments of real stages, and the start after each."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.faults import judge
from tests.faults.judge import Undisturbed
from tests.faults.verdict import Trial
from tests.faults.world import STAGES, World

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def durations(fresh: World, scratch: Path) -> dict[str, float]:
    """Seconds that each stage takes undisturbed from nothing."""
    world = fresh.copy(scratch / "timed")
    found = {stage: world.run([stage]).seconds for stage in STAGES}
    shutil.rmtree(world.folder)
    return found


def trials(
    fresh: World, calm: Undisturbed, scratch: Path, rng: random.Random, numbers: Iterable[int]
) -> Iterator[Trial]:
    """A kill each: stages up to a random one run, that one is killed once or twice, then all go on."""
    seconds = durations(fresh, scratch)
    for number in numbers:
        stage = rng.choice(STAGES)
        how = SIGNALS[number % len(SIGNALS)]
        world = fresh.copy(scratch / f"kill-{number}")
        world.run(STAGES[: STAGES.index(stage)])
        for _ in range(rng.choice((1, 1, 2))):
            running = world.start(stage)
            time.sleep(rng.uniform(0, 1.1 * seconds[stage]))
            running.kill(how)
            ended = running.wait()
        before = judge.lines(world)
        kind, what = f"{how.name} in {stage}", f"after {ended.seconds:.2f} s"
        if ended.code is None or ended.crashed:
            verdict, words = judge.started(ended) or (None, "")
        else:
            last = "export" if stage == "export" or rng.random() < 0.1 else "search"
            again = world.run(STAGES[STAGES.index(stage) : STAGES.index(last) + 1])
            verdict, words = judge.resumed(world, before, again, calm)
            ended = again
        assert verdict is not None
        yield Trial(kind, what, verdict, words, ended.seconds)
        shutil.rmtree(world.folder)
