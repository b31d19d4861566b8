"""Damage to every file that stages keep for later: bits, digits, ends, whole files."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tests.faults import judge
from tests.faults.judge import Undisturbed
from tests.faults.verdict import Trial
from tests.faults.world import STAGES, World

Damage = Callable[[Path, random.Random], str | None]
"""Does harm to a file and says what; None where it cannot."""


def flip_bit(path: Path, rng: random.Random) -> str | None:
    content = bytearray(path.read_bytes())
    if not content:
        return None
    at, bit = rng.randrange(len(content)), rng.randrange(8)
    content[at] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {at} flipped"


def change_digit(path: Path, rng: random.Random) -> str | None:
    """Another digit where a text has one: what stays readable is what is believed."""
    content = path.read_bytes()
    digits = [match.start() for match in re.finditer(rb"[0-9]", content)]
    if not digits or b"\0" in content:
        return None
    at = rng.choice(digits)
    other = rng.choice([d for d in b"0123456789" if d != content[at]])
    path.write_bytes(content[:at] + bytes([other]) + content[at + 1 :])
    return f"digit {chr(content[at])} at {at} made {chr(other)}"


def cut_short(path: Path, rng: random.Random) -> str | None:
    size = path.stat().st_size
    kept = rng.randrange(size) if size else 0
    path.write_bytes(path.read_bytes()[:kept])
    return f"cut from {size} to {kept} bytes"


def zero_block(path: Path, rng: random.Random) -> str | None:
    """Zeros in the place of a block, as a lost page of a disk leaves them."""
    content = bytearray(path.read_bytes())
    if not content:
        return None
    at = rng.randrange(len(content))
    length = min(512, len(content) - at)
    if not any(content[at : at + length]):
        return None
    content[at : at + length] = bytes(length)
    path.write_bytes(content)
    return f"{length} bytes from {at} made zero"


def drop_line(path: Path, rng: random.Random) -> str | None:
    lines = path.read_bytes().splitlines(keepends=True)
    if len(lines) < 2 or b"\0" in path.read_bytes():
        return None
    at = rng.randrange(len(lines))
    path.write_bytes(b"".join(lines[:at] + lines[at + 1 :]))
    return f"line {at + 1} dropped"


def swap(path: Path, rng: random.Random) -> str | None:
    """The content of another file of the same kind, whole and sound in itself."""
    others = [p for p in sorted(path.parent.glob(f"*{path.suffix}")) if p != path and p.is_file()]
    others = [p for p in others if p.read_bytes() != path.read_bytes()]
    if not others:
        return None
    other = rng.choice(others)
    path.write_bytes(other.read_bytes())
    return f"holds {other.name}"


def remove(path: Path, rng: random.Random) -> str | None:
    path.unlink()
    return "removed"


def in_the_way(path: Path, rng: random.Random) -> str | None:
    """A folder where a file should be."""
    path.unlink()
    path.mkdir()
    return "a folder in its place"


KINDS: dict[str, Damage] = {
    "bit flipped": flip_bit,
    "digit changed": change_digit,
    "file cut short": cut_short,
    "block of zeros": zero_block,
    "line dropped": drop_line,
    "content of another file": swap,
    "file removed": remove,
    "folder in a file's place": in_the_way,
}
FOR_PEOPLE = re.compile(r"\.(png|html|md)$")
"""Files that nobody but a person reads: damage to them is seen, and decides nothing."""


def kept(world: World) -> list[str]:
    """The files that a later start reads: outputs of stages, and caches."""
    return sorted(n for n in world.files() if n.startswith(("data/", "cache/")) and not FOR_PEOPLE.search(n))


def trials(
    finished: World, calm: Undisturbed, scratch: Path, rng: random.Random, numbers: Iterable[int]
) -> Iterator[Trial]:
    """One damaged file each; then the stages that read it run, and where they refuse it, all do."""
    names = kept(finished)
    for number in numbers:
        kind, damage = list(KINDS.items())[number % len(KINDS)]
        world = finished.copy(scratch / f"damage-{number}")
        name, what = _harmed(world, names, damage, rng)
        last = "export" if name.startswith("data/export") or rng.random() < 0.1 else "search"
        first = STAGES.index(name.split("/")[1]) if name.startswith("data/") else 1
        ended = world.run(STAGES[first : STAGES.index(last) + 1])
        verdict, words = judge.damaged(world, name, ended, calm, last)
        yield Trial(kind, f"{name}: {what}", verdict, words, ended.seconds)
        shutil.rmtree(world.folder)


def _harmed(world: World, names: list[str], damage: Damage, rng: random.Random) -> tuple[str, str]:
    while True:
        name = rng.choice(names)
        if what := damage(world.folder / name, rng):
            return name, what
