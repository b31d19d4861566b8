"""Stage `search`: predictor -> narrowed space -> finalists -> best measured.  Run: python -m stages.search"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from stages.architecture import ModelShape
from stages.build_dataset.features import Features
from stages.evaluate.journal import Journal, Row, evaluation_of
from stages.evaluate.measure import Work
from stages.evaluate.workbench import open_workbench
from stages.files import write_json
from stages.params import Params
from stages.sample import designs
from stages.sample.space import Space, prunable_sites
from stages.search import narrowing, outcome, tpe
from stages.search.outcome import Candidate
from stages.stage import DATA, main
from stages.tracking import Tracker, open_tracker
from stages.train_predictor.predictor import Predictor

HERE = DATA / "search"


def run(params: Params, arguments: argparse.Namespace) -> None:
    shape, designed = designs.read(DATA / "sample" / "architectures.json")
    predictor = Predictor.load(DATA / "train_predictor" / "predictor")
    scores = DATA / "evaluate" / "importance.safetensors"
    features = Features.of_model(shape, params.sample.bundle, scores)
    space = _narrowed(params, shape, predictor, features)
    with (
        Journal(HERE / "journal.jsonl") as journal,
        open_tracker("search", params, enabled=not arguments.no_tracking) as tracker,
    ):
        section = params.search
        bench = open_workbench(params, scores)
        evaluator = bench.evaluator("selection", section.measurement, section.repair_again)
        trials = tpe.search(space, predictor, features, section, params.budget)
        chosen = tpe.finalists(trials, section.finalists, section.min_distance)
        baselines = designed[: len(designs.BASELINES)]
        work = [Work(b.architecture, b.design) for b in baselines]
        work += [Work(t.architecture, outcome.FINALIST) for t in chosen]
        write_json(
            HERE / "context.json", "prunecast.context", 1, {"digest": evaluator.digest, **evaluator.context}
        )
        rows = evaluator.measure_all(
            work,
            journal,
            lambda row: tracker.log_evaluation(
                evaluation_of(row, shape, "search", evaluator.selection.words())
            ),
            "finalists",
        )
        candidates = _ranked(work, rows, predictor, features, section.objective)
        _write(trials, candidates, evaluator.protocol)
        _track(tracker, params, trials, candidates, rows)
    for candidate in candidates:
        ppl = ", ".join(f"{k} {v:.2f}" for k, v in candidate.metrics.items() if k.startswith("ppl."))
        print(f"{candidate.name:9} {candidate.architecture.id} {100 * candidate.overall_ratio:.2f} % {ppl}")


def _narrowed(params: Params, shape: ModelShape, predictor: Predictor, features: Features) -> Space:
    section = params.search
    gains = pd.DataFrame({target: predictor.gains(target, features) for target in section.objective})
    importance = {str(site): float(value) for site, value in gains.mean(axis=1).items()}
    prunable = prunable_sites(shape, params.sample.first_layers_kept, params.sample.last_layers_kept)
    narrowed = narrowing.narrow(shape, prunable, importance, section.narrowing)
    space = narrowing.space_of(shape, params.sample.mlp_granularity, narrowed)
    narrowing.check_reachable(space, params.budget)
    narrowing.write(HERE / "narrowed_space.json", narrowed, space)
    return space


def _ranked(
    work: Sequence[Work],
    rows: Mapping[str, Row],
    predictor: Predictor,
    features: Features,
    weights: Mapping[str, float],
) -> list[Candidate]:
    """Baselines, then finalists from best to worst measured; the best finalist is the winner."""
    forecasts = predictor.forecast(features.matrix([w.architecture for w in work]))
    found = []
    for index, item in enumerate(work):
        row = rows[item.architecture.id]
        forecast = {target: float(values[index]) for target, values in forecasts.items()}
        measured = tpe.objective_of(row.metrics, weights)
        found.append(
            Candidate(item.design, item.architecture, row.overall_ratio, row.metrics, forecast, measured)
        )
    baselines = [c for c in found if c.name != outcome.FINALIST]
    finalists = sorted(
        (c for c in found if c.name == outcome.FINALIST), key=lambda c: (c.objective, c.architecture.id)
    )
    winner = Candidate(**{**finalists[0].__dict__, "name": outcome.WINNER})
    return [*baselines, winner, *finalists[1:]]


def _write(
    trials: Sequence[tpe.Trial], candidates: Sequence[Candidate], protocol: Sequence[Mapping[str, Any]]
) -> None:
    table = pd.DataFrame(
        [
            {"trial": t.number, "architecture": t.architecture.id, "objective": t.objective}
            | {f"forecast.{target}": value for target, value in t.forecast.items()}
            for t in trials
        ]
    )
    table["best"] = table["objective"].cummin()
    table.to_csv(HERE / "trials.csv", index=False)
    outcome.write(HERE / "outcome.json", list(candidates))
    by_name = {c.name: c for c in reversed(candidates)}
    content = {
        name: {"overall_ratio": c.overall_ratio, "objective": c.objective, **c.metrics}
        for name, c in by_name.items()
        if name != outcome.FINALIST
    }
    write_json(
        HERE / "metrics.json", "prunecast.search-metrics", 1, {"selection": content, "protocol": [*protocol]}
    )


def _track(
    tracker: Tracker,
    params: Params,
    trials: Sequence[tpe.Trial],
    candidates: Sequence[Candidate],
    rows: Mapping[str, Row],
) -> None:
    tags = {}
    for candidate in candidates:
        role = {"prunecast.role": candidate.name, "prunecast.objective": f"{candidate.objective:.4f}"}
        tags[rows[candidate.architecture.id].key] = role
    tracker.tag_evaluations(tags)
    section = params.search
    tracker.child(
        "search on forecasts",
        {"sampler": "TPE", "trials": section.trials, "finalists": section.finalists, "seed": section.seed},
        {"best_forecast_objective": min(t.objective for t in trials)},
        [HERE / name for name in ("trials.csv", "narrowed_space.json", "outcome.json")],
    )


if __name__ == "__main__":
    main("search", run)
