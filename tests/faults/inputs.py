"""What is put in, damaged: a campaign takes a harm to a fresh world, runs the first stages, and judges."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.evaluate.results import journal
from tests.faults import judge
from tests.faults.judge import Judgement, Undisturbed
from tests.faults.verdict import Trial, Verdict
from tests.faults.world import Ended, World

Measured = Mapping[str, Mapping[str, float]]
"""The metrics of each architecture by its id."""


@dataclass(frozen=True)
class Harm:
    """One way to damage what is put in."""

    kind: str
    apply: Callable[[World, random.Random], str]
    """Does it, and says what it did."""
    words: Sequence[str]
    """A refusal has one of them."""
    excused: Callable[[World], str | None] = lambda world: None
    """Why other values than the undisturbed ones are right all the same, e.g. as transformers has them."""


def measured(world: World) -> Measured:
    rows = journal.read(world.folder / "data" / "evaluate" / "journal.jsonl")
    return {row.architecture.id: dict(row.metrics) for row in rows.values()}


def campaign(
    harms: Sequence[Harm], stages: Sequence[str] = ("sample", "evaluate")
) -> Callable[[World, Undisturbed, Path, random.Random, Iterable[int]], Iterator[Trial]]:
    """Each harm in turn, to a fresh world, as often as it takes."""

    def trials(
        fresh: World, calm: Undisturbed, scratch: Path, rng: random.Random, numbers: Iterable[int]
    ) -> Iterator[Trial]:
        undisturbed = fresh.copy(scratch / "undisturbed")
        said = _said(undisturbed, undisturbed.run(stages))
        expected = measured(undisturbed)
        for number in numbers:
            harm = harms[number % len(harms)]
            world = fresh.copy(scratch / f"harm-{number}")
            what = harm.apply(world, rng)
            ended = world.run(stages)
            verdict, words = _judged(world, harm, ended, expected, said)
            yield Trial(harm.kind, what, verdict, words, ended.seconds)
            shutil.rmtree(world.folder)
        shutil.rmtree(undisturbed.folder)

    return trials


def _judged(world: World, harm: Harm, ended: Ended, expected: Measured, said: set[str]) -> Judgement:
    if wrong := judge.started(ended):
        return wrong
    if ended.code == 2:
        named = any(word.lower() in ended.output.lower() for word in harm.words)
        return (Verdict.REFUSED if named else Verdict.SILENT), ended.last
    if measured(world) == expected:
        return Verdict.UNHARMED, ended.last
    if new := sorted(_said(world, ended) - said):
        return Verdict.TOLD, new[0]
    if excuse := harm.excused(world):
        return Verdict.UNHARMED, excuse
    return Verdict.SILENT, "measured with other values, without a word"


def _said(world: World, ended: Ended) -> set[str]:
    """The lines said, and the notes on how corpora were divided, but for progress bars and figures."""
    path = world.folder / "data" / "evaluate" / "division.json"
    division = json.loads(path.read_text()) if path.is_file() else {}
    notes = [about["note"] for about in division.values() if isinstance(about, dict) and "note" in about]
    output = "\n".join([ended.output, *notes])
    lines = (re.sub(r"[-0-9.]+", "#", line).strip() for line in re.split(r"[\r\n]", output))
    return {line for line in lines if line and "|" not in line and "'#" not in line and "{" not in line}
