"""What the search found: the file that passes from `search` to `export`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.architecture import Architecture
from stages.files import check_seals, read_document, read_json, seals, write_json

SCHEMA, VERSION = "prunecast.search-outcome", 4
WINNER, FINALIST = "winner", "finalist"
FRONT = "front"  # the best at a further overall ratio


@dataclass(frozen=True)
class Candidate:
    """An architecture measured by the search: a finalist, the winner, or a baseline."""

    name: str
    architecture: Architecture
    overall_ratio: float
    metrics: Mapping[str, float]
    """Measured on the selection part."""
    forecast: Mapping[str, float]
    """The predictor's estimates of the targets."""
    objective: float
    """The search's objective on the measured values; lower is better."""
    weights: str = ""
    """Digest of the weights of its own that were measured; empty where a prefix view was."""


@dataclass(frozen=True)
class Step:
    """What the search would have ended with, had it stopped there: "one-shot", or "round 1" and so on."""

    name: str
    architecture: Architecture
    evaluations: int
    """How many architectures had been measured by then."""
    objective: float
    """Measured on the selection part, as the pairs are; lower is better."""


def candidate_of(candidates: Sequence[Candidate], name: str) -> Candidate:
    """The first candidate of that name."""
    return next(c for c in candidates if c.name == name)


def write(
    path: Path, candidates: Sequence[Candidate], tables: Sequence[str] = (), steps: Sequence[Step] = ()
) -> None:
    """Write the candidates and `steps`, and the checksums of the `tables`, files that lie beside."""
    rows = [
        {
            "name": c.name,
            "id": c.architecture.id,
            "overall_ratio": c.overall_ratio,
            "objective": c.objective,
            "metrics": dict(c.metrics),
            "forecast": dict(c.forecast),
            "widths": c.architecture.to_json(),
            "weights": c.weights,
        }
        for c in candidates
    ]
    of_steps = [
        {
            "name": s.name,
            "id": s.architecture.id,
            "evaluations": s.evaluations,
            "objective": s.objective,
            "widths": s.architecture.to_json(),
        }
        for s in steps
    ]
    content = {"candidates": rows, "steps": of_steps, "tables": seals(path.parent, tables)}
    write_json(path, SCHEMA, VERSION, content)


def read(path: Path) -> list[Candidate]:
    """Read what `write` wrote: exactly one winner among the candidates.

    Raises:
        InputError: the file is missing, of another schema, or damaged.
    """

    def make(document: dict[str, Any]) -> list[Candidate]:
        found = [_candidate(row) for row in document["candidates"]]
        if (winners := sum(c.name == WINNER for c in found)) != 1:
            raise ValueError(f"it names {winners} winners")
        return found

    return read_document(path, SCHEMA, VERSION, "search", make)


def read_steps(path: Path) -> list[Step]:
    """Read the steps that `write` wrote.

    Raises:
        InputError: the file is missing, of another schema, or damaged.
    """

    def make(document: dict[str, Any]) -> list[Step]:
        return [
            Step(row["name"], _architecture(row), row["evaluations"], row["objective"])
            for row in document["steps"]
        ]

    return read_document(path, SCHEMA, VERSION, "search", make)


def check_tables(path: Path) -> None:
    """Compare the tables beside the outcome with those that were there when it was written.

    Raises:
        InputError: one was altered, or the outcome is damaged.
    """
    check_seals(path.parent, read_json(path, SCHEMA, VERSION, "search")["tables"], "search")


def _candidate(row: Mapping[str, Any]) -> Candidate:
    return Candidate(
        row["name"],
        _architecture(row),
        row["overall_ratio"],
        row["metrics"],
        row["forecast"],
        row["objective"],
        row["weights"],
    )


def _architecture(row: Mapping[str, Any]) -> Architecture:
    architecture = Architecture.from_json(row["widths"])
    if architecture.id != row["id"]:
        raise ValueError(f"{row['name']} {row['id']} has widths whose id is {architecture.id}")
    return architecture
