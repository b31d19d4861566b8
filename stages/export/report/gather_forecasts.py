"""Gather what the report says of front and predictor from the files of the stages before."""

from __future__ import annotations

from pathlib import Path

from stages.export.report.parts import FrontPoint, Trust
from stages.metrics.perplexity import PPL
from stages.metrics.registered import by_corpus
from stages.search import tables
from stages.train_predictor import results


def front_points(path: Path) -> list[FrontPoint]:
    """The rows of the front's table, by rising overall ratio."""
    return [
        FrontPoint(
            name=row.name,
            architecture=row.architecture,
            overall_ratio=row.overall_ratio,
            parameters=row.parameters,
            ppl=by_corpus(row.metrics, PPL),
            forecast_ppl=by_corpus(row.forecast, PPL),
            takes=row.takes,
            dominated=row.dominated,
        )
        for row in tables.read_front(path)
    ]


def trust(metrics: Path, ablation: Path, rounds: Path) -> Trust:
    """How far forecasts can be trusted, from the predictor's metrics, its ablation and the rounds."""
    errors = results.read_errors(metrics)
    return Trust(
        kind=errors.kind,
        promised_coverage=errors.promised_coverage,
        cross_validated=errors.cross_validated,
        ablation=results.read_judged(ablation),
        rounds=tables.read_rounds(rounds),
    )


def predictor_errors(path: Path) -> dict[str, dict[str, float]]:
    """Errors on held-out pairs, by target."""
    return {
        target: {k: v for k, v in values.items() if isinstance(v, float)}
        | {"held_out_pairs": values["pairs"]}
        for target, values in results.read_errors(path).held_out.items()
    }
