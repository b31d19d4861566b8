"""What the search leaves behind: candidates, tables of trials and rounds, figures, and their runs."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.architecture import Architecture
from stages.build_dataset.features import Features
from stages.config.params import Params
from stages.evaluate.measure.plan import Work
from stages.evaluate.results.journal import Row
from stages.files import InputError
from stages.metrics.objective import objective_of
from stages.sample import designs
from stages.sample.limits import Limit
from stages.search import outcome, tables
from stages.search.outcome import FRONT, Candidate, Step
from stages.search.rounds import Metrics, Round
from stages.tracking.records import Role, SearchRound
from stages.tracking.tracker import Tracker
from stages.train_predictor.predictor import Predictor


def ranked(
    work: Sequence[Work],
    rows: Mapping[str, Row],
    predictor: Predictor,
    before: Mapping[Architecture, Metrics],
    features: Features,
    weights: Mapping[str, float],
) -> list[Candidate]:
    """Baselines, then finalists from best to worst measured, then the front; the best finalist wins.

    A forecast is the one made `before` the architecture was measured, or else the last predictor's.

    Raises:
        InputError: there is no finalist.
    """
    forecasts = predictor.forecast(features.matrix([w.architecture for w in work]))
    found = []
    for index, item in enumerate(work):
        row = rows[item.architecture.id]
        last = {target: float(values[index]) for target, values in forecasts.items()}
        forecast = before.get(item.architecture, last)
        measured = objective_of(row.metrics, weights)
        found.append(
            Candidate(
                item.design,
                item.architecture,
                row.overall_ratio,
                row.metrics,
                forecast,
                measured,
                "" if item.weights is None else item.weights.digest,
            )
        )
    finalists = sorted(
        (c for c in found if c.name == outcome.FINALIST), key=lambda c: (c.objective, c.architecture.id)
    )
    if not finalists:
        raise InputError(
            "not one of the finalists measured finite numbers: what is said of each above names the value"
        )
    winner = Candidate(**{**finalists[0].__dict__, "name": outcome.WINNER})
    baselines = [c for c in found if c.name in designs.BASELINES]
    front = sorted((c for c in found if c.name == FRONT), key=lambda c: c.overall_ratio)
    return [*baselines, winner, *finalists[1:], *front]


def write(
    here: Path,
    params: Params,
    rounds: Sequence[Round],
    candidates: Sequence[Candidate],
    steps: Sequence[Step],
    protocol: Sequence[Mapping[str, Any]],
    limits: Sequence[Limit] = (),
) -> None:
    """Write the trials, a row a round, the outcome with its `steps`, and the search's metrics.

    Among those, what each candidate takes of what the budget limits, as forecast by its table.
    """
    tables.write_trials(here / tables.TRIALS, rounds)
    errors = tables.round_errors(rounds, params.search.objective)
    tables.write_rounds(here / tables.ROUNDS, errors)
    outcome.write(
        here / "outcome.json", candidates, [t for t in tables.TABLES if (here / t).is_file()], steps
    )
    by_name = {c.name: c for c in reversed(candidates)}
    selection = {
        name: {"overall_ratio": c.overall_ratio, "objective": c.objective, **c.metrics}
        | {limit.name: limit.of(c.architecture) for limit in limits if limit.name != "overall_ratio"}
        for name, c in by_name.items()
        if name not in (outcome.FINALIST, FRONT)
    }
    tables.write_metrics(here / "metrics.json", selection, errors, protocol)


def log_round(tracker: Tracker, params: Params, found: Round) -> None:
    """One run a round: its predictor, and its errors on what it had not seen."""
    section = params.search
    errors = found.errors(section.objective)
    text = ", ".join(f"{key} {value:.4f}" for key, value in errors.items()) or "nothing was measured"
    print(f"round {found.number}, forecasts against measurements: {text}", flush=True)
    about = SearchRound(
        number=found.number,
        predictor=found.predictor.kind,
        sampler=section.sampler,
        seed=section.seed,
        trials=len(found.trials),
        measured=len(found.measured),
        best_forecast=found.best_trial.objective,
        errors=errors | ({"gain": found.gain} if math.isfinite(found.gain) else {}),
    )
    with tempfile.TemporaryDirectory() as folder:
        found.predictor.save(Path(folder) / "predictor")
        tracker.log_round(about, Path(folder) / "predictor")


def tell(tracker: Tracker, here: Path, candidates: Sequence[Candidate], rows: Mapping[str, Row]) -> None:
    """Tell each candidate's role, and hand over the search's files."""
    tracker.tag_roles({rows[c.architecture.id].key: Role(c.name, c.objective) for c in candidates})
    names = (*tables.TABLES, "narrowed_space.json", "outcome.json")
    tracker.log_stage(artifacts=[here / name for name in names])
