"""Gather what the report says of narrowing, front and predictor from the files of the stages before."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from stages.export.report.parts import AblationRow, FrontPoint, NarrowedSite, Trust
from stages.files import read_json
from stages.search import narrowing


def narrowed_space(path: Path) -> tuple[str, dict[str, NarrowedSite]]:
    """What narrowing went by, "importance" or "damage", and what it left of each site."""
    document = read_json(path, narrowing.SCHEMA, narrowing.VERSION)
    sites = {}
    for row in document["sites"]:
        widths = [(w,) if isinstance(w, int) else tuple(w) for w in row["widths"]]
        low, high = row["ratios"]
        sites[row["site"]] = NarrowedSite(row["class"], low, high, float(row["importance"]), widths)
    return document["summary"]["ranked_by"], sites


def front_points(path: Path) -> list[FrontPoint]:
    """The rows of the front's table, by rising overall ratio."""
    table = pd.read_csv(path)

    def named(row: Mapping[Hashable, Any], prefix: str) -> dict[str, float]:
        found = {str(k).removeprefix(prefix): v for k, v in row.items() if str(k).startswith(prefix)}
        return {key: float(value) for key, value in found.items() if not pd.isna(value)}

    return [
        FrontPoint(
            name=str(row["name"]),
            architecture=str(row["architecture"]),
            overall_ratio=float(row["overall_ratio"]),
            parameters=int(row["parameters"]),
            ppl=named(row, "ppl."),
            forecast_ppl=named(row, "forecast.ppl."),
            takes=named(row, "takes."),
            dominated=bool(row["dominated"]),
        )
        for row in table.to_dict("records")
    ]


def trust(metrics: Path, ablation: Path, rounds: Path) -> Trust:
    """How far forecasts can be trusted, from the predictor's metrics, its ablation and the rounds."""
    document = _errors(metrics)
    words = ("target", "scale", "predictor", "features")
    rows = [
        AblationRow(
            target=str(row["target"]),
            what=str(row["predictor"]),
            features=int(row["features"]),
            errors={str(k): float(v) for k, v in row.items() if k not in words and not pd.isna(v)},
        )
        for row in pd.read_csv(ablation).to_dict("records")
    ]
    return Trust(
        kind=document["kind"],
        promised_coverage=document["promised_coverage"],
        cross_validated=document["cross_validated"],
        ablation=rows,
        rounds=[
            {str(key): float(value) for key, value in row.items() if not pd.isna(value)}
            for row in pd.read_csv(rounds).to_dict("records")
        ],
    )


def predictor_errors(path: Path) -> dict[str, dict[str, float]]:
    """Errors on held-out pairs, by target."""
    return {
        target: {k: v for k, v in values.items() if isinstance(v, float)}
        | {"held_out_pairs": values["pairs"]}
        for target, values in _errors(path)["held_out"].items()
    }


def _errors(path: Path) -> dict[str, Any]:
    return read_json(path, "prunecast.predictor-errors", 3)
