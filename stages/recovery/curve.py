"""The course of a training, as its file keeps it and a report draws it; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from stages.files import kept, read_dataclass, write_json

SCHEMA, VERSION = "prunecast.recovery-curve", 1

Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """Points of (tokens, value): the search's objective on the selection part, and losses, nats a token."""

    objective: Sequence[Point] = ()
    loss: Sequence[Point] = ()


def write(path: Path, curve: Curve) -> None:
    write_json(path, SCHEMA, VERSION, asdict(curve))


def read(path: Path) -> Curve:
    """The curve that lies there; an empty one if there is none, or it is damaged, which is said."""
    return kept(path, lambda at: read_dataclass(at, SCHEMA, VERSION, Curve, "export")) or Curve()
