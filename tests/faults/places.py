"""Disks that are full, and places that cannot be written, in every stage."""

from __future__ import annotations

import random
import resource
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.faults import judge
from tests.faults.judge import Judgement, Undisturbed
from tests.faults.verdict import Trial, Verdict
from tests.faults.world import STAGES, World


def full_disk(
    fresh: World, calm: Undisturbed, scratch: Path, rng: random.Random, numbers: Iterable[int]
) -> Iterator[Trial]:
    """No file may grow beyond a random size in one stage; then there is room again."""
    for number in numbers:
        stage = STAGES[number % len(STAGES)]
        limit = round(10 ** rng.uniform(0, 5.5))
        world = fresh.copy(scratch / f"full-{number}")
        world.run(STAGES[: STAGES.index(stage)])
        before = judge.lines(world)

        def fill(limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

        ended = world.run([stage], before=fill)
        verdict, words = judge.started(ended) or (Verdict.REFUSED if ended.code else Verdict.TOLD, ended.last)
        if verdict.good:
            stages = STAGES[STAGES.index(stage) : -1] or STAGES[-1:]
            verdict, words = _healed(world, stages, before, calm) or (verdict, words)
        yield Trial(f"full disk in {stage}", f"{limit} bytes a file", verdict, words, ended.seconds)
        shutil.rmtree(world.folder)


def in_the_way(
    fresh: World, calm: Undisturbed, scratch: Path, rng: random.Random, numbers: Iterable[int]
) -> Iterator[Trial]:
    """A file stands where a folder has to be made: what anybody's missing rights come to, root's too."""
    places = ["cache", "cache/calibration", "data", *(f"data/{stage}" for stage in STAGES)]
    for number in numbers:
        place = places[number % len(places)]
        world = fresh.copy(scratch / f"way-{number}")
        at = world.folder / place
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_text("")
        ended = world.run(STAGES)
        verdict, words = judge.started(ended) or (Verdict.TOLD, ended.last)
        if ended.code == 2:
            named = place.rsplit("/", 1)[-1] in ended.output
            verdict, words = (Verdict.REFUSED if named else Verdict.SILENT), ended.last
        if verdict.good:
            at.unlink(missing_ok=True)
            verdict, words = _healed(world, STAGES, {}, calm) or (verdict, words)
        yield Trial("place that cannot be written", place, verdict, words, ended.seconds)
        shutil.rmtree(world.folder)


def _healed(
    world: World, stages: Sequence[str], before: Mapping[str, Sequence[str]], calm: Undisturbed
) -> Judgement | None:
    """What is wrong after stages ran again with nothing in their way, if anything is."""
    found, words = judge.resumed(world, before, world.run(stages), calm)
    if not found.good:
        return found, words
    other = judge.differs(world.results(), calm.results, "search")
    return (Verdict.SILENT, other) if other else None
