"""What is right after a fault: nothing silent, no traceback, no hang, nothing lost, nothing left behind."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.faults.verdict import Verdict
from tests.faults.world import STAGES, Ended, Results, World

Judgement = tuple[Verdict, str]


@dataclass(frozen=True)
class Undisturbed:
    """What runs without a fault find and leave."""

    results: Results
    files: frozenset[str]

    @classmethod
    def of(cls, one: World, other: World) -> Undisturbed:
        """Of two finished runs of the same world: what is the same in both, and the files of both."""
        first, second = one.results(), other.results()
        same = {name: d for name, d in first.digests.items() if second.digests.get(name) == d}
        return cls(Results(first.rows, same), frozenset(one.files() | other.files()))


def started(ended: Ended) -> Judgement | None:
    """What is wrong with an end whatever the fault was."""
    if ended.code is None:
        return Verdict.HANG, f"{ended.stage}: no end in {ended.seconds:.0f} s; {ended.output[-3000:]}"
    if ended.crashed:
        return Verdict.TRACEBACK, f"{ended.stage}: {ended.last}"
    if ended.code not in (0, 2):
        return Verdict.TRACEBACK, f"{ended.stage}: exit code {ended.code}: {ended.last}"
    return None


def damaged(world: World, name: str, ended: Ended, calm: Undisturbed, last: str) -> Judgement:
    """After damage to the kept file `name`, and stages run up to `last`."""
    if wrong := started(ended):
        return wrong
    if ended.code == 0:
        if other := differs(world.results(), calm.results, last):
            return Verdict.SILENT, other
        return left_behind(world, calm) or (Verdict.UNHARMED, ended.last)
    if not _names(ended, name):
        return Verdict.SILENT, f"{name} is not named: {ended.last}"
    again = world.run(STAGES[: STAGES.index(last) + 1])
    if again.code != 0:
        return Verdict.LOST, f"not healed by running again: {again.last}"
    if other := differs(world.results(), calm.results, last):
        return Verdict.LOST, other
    return left_behind(world, calm) or (Verdict.REFUSED, ended.last)


def _names(ended: Ended, name: str) -> bool:
    return any(part in ended.output for part in (name, name.rsplit("/", 1)[-1], name.rsplit("/", 2)[-2]))


def differs(found: Results, calm: Results, last: str) -> str | None:
    """The first of the undisturbed results, up to the stage `last`, that is another or not there."""
    upto = STAGES[: STAGES.index(last) + 1]
    for stage, rows in calm.rows.items():
        if stage in upto:
            for key, metrics in rows.items():
                if found.rows.get(stage, {}).get(key) != metrics:
                    return f"{stage}: the row {key} is another or gone"
    for name, digest in calm.digests.items():
        if name.split("/")[1] in upto and found.digests.get(name) != digest:
            return f"{name} is another"
    return None


def resumed(world: World, before: Mapping[str, Sequence[str]], ended: Ended, calm: Undisturbed) -> Judgement:
    """After a kill and another start: rows that were there are there once, with the undisturbed values."""
    if wrong := started(ended):
        return wrong
    if ended.code != 0:
        return Verdict.LOST, f"{ended.stage} does not go on: {ended.last}"
    for stage, found in world.results().rows.items():
        for key, metrics in found.items():
            known = calm.results.rows.get(stage, {}).get(key)
            if known is not None and metrics != known:
                return Verdict.SILENT, f"{stage}: the row {key} has other values"
    for stage, now in lines(world).items():
        if gone := set(before.get(stage, ())) - set(now):
            return Verdict.LOST, f"{stage}: {len(gone)} rows are gone"
        if twice := [key for key, count in Counter(map(_key, now)).items() if count > 1]:
            return Verdict.LOST, f"{stage}: the row {twice[0]} stands there twice"
    return left_behind(world, calm) or (Verdict.UNHARMED, ended.last)


def lines(world: World) -> dict[str, list[str]]:
    """The whole lines of each journal."""
    found = {}
    for path in (world.folder / "data").glob("*/journal.jsonl"):
        found[path.parent.name] = path.read_text(errors="replace").split("\n")[:-1]
    return found


def _key(line: str) -> str:
    try:
        return str(json.loads(line)["key"])
    except (ValueError, KeyError, TypeError):
        return line


def left_behind(world: World, calm: Undisturbed) -> Judgement | None:
    """Hidden and temporary files and locks that no undisturbed run leaves."""
    strange = [name for name in world.files() - calm.files if _temporary(name)]
    return (Verdict.LEFT, ", ".join(sorted(strange)[:3])) if strange else None


def _temporary(name: str) -> bool:
    """Whether a file looks like one that was under way; entries of caches have names of their own."""
    return any(part.startswith(".") for part in name.split("/")) or name.endswith((".part", ".lock", ".tmp"))
