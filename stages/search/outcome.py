"""What the search found: the file that passes from `search` to `export`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.architecture import Architecture
from stages.files import InputError, read_json, write_json

SCHEMA, VERSION = "prunecast.search-outcome", 2
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


def candidate_of(candidates: Sequence[Candidate], name: str) -> Candidate:
    """The first candidate of that name."""
    return next(c for c in candidates if c.name == name)


def write(path: Path, candidates: list[Candidate]) -> None:
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
    write_json(path, SCHEMA, VERSION, {"candidates": rows})


def read(path: Path) -> list[Candidate]:
    """Read what `write` wrote: exactly one winner among the candidates.

    Raises:
        InputError: the file is missing, of another schema, or damaged.
    """
    document = read_json(path, SCHEMA, VERSION)
    try:
        found = [_candidate(row) for row in document["candidates"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); run `dvc repro search`") from error
    if sum(c.name == WINNER for c in found) != 1:
        raise InputError(f"{path} names no single winner; run `dvc repro search`")
    return found


def _candidate(row: Mapping[str, Any]) -> Candidate:
    architecture = Architecture.from_json(row["widths"])
    if architecture.id != row["id"]:
        raise ValueError(f"candidate {row['id']} has widths whose id is {architecture.id}")
    return Candidate(
        row["name"],
        architecture,
        row["overall_ratio"],
        row["metrics"],
        row["forecast"],
        row["objective"],
        row["weights"],
    )
