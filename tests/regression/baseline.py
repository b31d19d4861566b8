"""What one run of the reduced pipeline measured, and the committed file that keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stages.architecture import Architecture
from stages.files import InputError, read_json, write_json

SCHEMA, VERSION = "prunecast.regression-baseline", 1
DIGITS = 7
"""Decimals of a sample: far below what float32 holds apart between two machines."""


@dataclass(frozen=True)
class Contender:
    """An architecture and the samples measured of it.

    `samples` by the key of their metric (`stages.metrics`): a value a window, or a question.
    """

    architecture: Architecture
    overall_ratio: float
    samples: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Run:
    """One run of the reduced pipeline.

    Attributes:
        model: the source of the model.
        weights: digest of the dense model's weights, for information.
        protocol: how each figure is measured (`Selection.protocol`).
        fingerprints: digests of the tokens of each text and of the questions of each corpus.
        params: the params that were run, flat: ``evaluate.importance`` and so on.
        packages: versions of what decides the figures.
        contenders: by name.
    """

    model: str
    weights: str
    protocol: Sequence[Mapping[str, Any]]
    fingerprints: Mapping[str, str]
    params: Mapping[str, Any]
    packages: Mapping[str, str]
    contenders: Mapping[str, Contender]


def write(path: Path, run: Run) -> None:
    content = {name: value for name, value in asdict(run).items() if name != "contenders"}
    contenders = {
        name: {
            "architecture": c.architecture.id,
            "overall_ratio": round(c.overall_ratio, 6),
            "samples": {metric: [round(v, DIGITS) for v in values] for metric, values in c.samples.items()},
            "widths": c.architecture.to_json(),
        }
        for name, c in run.contenders.items()
    }
    write_json(path, SCHEMA, VERSION, {**content, "contenders": contenders})


def read(path: Path) -> Run:
    """Read what `write` wrote.

    Raises:
        InputError: the file is missing, damaged or of another schema.
    """
    try:
        document = read_json(path, SCHEMA, VERSION)
        contenders = {name: _contender(row) for name, row in document.pop("contenders").items()}
        del document["schema"], document["version"]
        return Run(**document, contenders=contenders)
    except (InputError, KeyError, TypeError, ValueError) as error:
        problem = "is missing" if not path.is_file() else f"cannot be read ({error})"
        raise InputError(
            f"the baseline {path} {problem}; restore it with `git checkout`, or measure a new one with "
            "`make regression-update`"
        ) from error


def _contender(row: Mapping[str, Any]) -> Contender:
    architecture = Architecture.from_json(row["widths"])
    if architecture.id != row["architecture"]:
        raise ValueError(f"architecture {row['architecture']} has widths whose id is {architecture.id}")
    return Contender(architecture, row["overall_ratio"], row["samples"])
