"""Stage `search`: predictor -> rounds -> finalists -> best measured.  Run: python -m stages.search"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from stages.architecture import Architecture
from stages.build_dataset import table
from stages.build_dataset.features import Features
from stages.evaluate.journal import Journal, Row, evaluation_of
from stages.evaluate.measure import Evaluator, Work
from stages.evaluate.workbench import open_workbench
from stages.files import InputError, read_json, write_json
from stages.params import Params
from stages.sample import designs
from stages.sample.designs import Designed
from stages.sample.space import Space, prunable_sites
from stages.search import narrowing, outcome, tpe
from stages.search.outcome import Candidate
from stages.search.rounds import GuidedSearch, Metrics, Round
from stages.stage import DATA, main
from stages.tracking import Tracker, open_tracker
from stages.train_predictor.predictor import Predictor

HERE = DATA / "search"
FRONT = "front"


def run(params: Params, arguments: argparse.Namespace) -> None:
    shape, designed = designs.read(DATA / "sample" / "architectures.json")
    first = Predictor.load(DATA / "train_predictor" / "predictor")
    scores = DATA / "evaluate" / "importance.safetensors"
    features = Features.of_model(shape, params.sample.bundle, scores)
    pairs, _, targets = table.read(DATA / "build_dataset" / "pairs.parquet")
    space = narrowed(params, first, features, pairs)
    narrowing.check_reachable(space, params.budget.overall_ratio, "budget.overall_ratio")
    for ratio in params.search.front:
        narrowing.check_reachable(space, ratio, "search.front")
    with (
        Journal(HERE / "journal.jsonl") as journal,
        open_tracker("search", params, enabled=not arguments.no_tracking) as tracker,
    ):
        bench = open_workbench(params, scores)
        section = params.search
        as_pairs = bench.evaluator("selection", params.evaluate.measurement)
        _check_context(as_pairs)
        finally_ = bench.evaluator("selection", section.measurement, section.repair_again)
        context = {"digest": finally_.digest, **finally_.context}
        write_json(HERE / "context.json", "prunecast.context", 1, context)

        def log(row: Row) -> None:
            tracker.log_evaluation(evaluation_of(row, shape, "search"))

        def measure(architectures: Sequence[Architecture], number: int) -> dict[Architecture, Metrics]:
            work = [Work(a, f"round-{number}") for a in architectures]
            rows = as_pairs.measure_all(work, journal, log, f"round {number} of {section.rounds}")
            return {a: rows[a.id].metrics for a in architectures}

        guided = GuidedSearch(
            features, targets, section, params.train_predictor, params.budget,
            lambda found, seen: narrowed(params, found, features, seen), measure, HERE / "studies.log",
        )  # fmt: skip
        rounds, known = guided.run(
            _known(designed, pairs, targets), first, lambda r: _log(tracker, params, r)
        )
        last = guided.learn(known)
        work = [Work(d.architecture, d.design) for d in designed[: len(designs.BASELINES)]]
        chosen = guided.best(known, params.budget.overall_ratio)
        work += [Work(a, outcome.FINALIST) for a in chosen]
        work += _front(guided, last, known, params, features)
        rows = finally_.measure_all(work, journal, log, "finalists")
        before = {t.architecture: t.forecast for r in rounds for t in r.chosen}
        candidates = _ranked(work, rows, last, before, features, section.objective)
        _write(params, rounds, candidates, last, features, guided.table(known))
        _track(tracker, candidates, rows)
    for candidate in candidates:
        ppl = ", ".join(f"{k} {v:.2f}" for k, v in candidate.metrics.items() if k.startswith("ppl."))
        print(f"{candidate.name:9} {candidate.architecture.id} {100 * candidate.overall_ratio:.2f} % {ppl}")


def narrowed(params: Params, predictor: Predictor, features: Features, pairs: pd.DataFrame) -> Space:
    """The space that a predictor narrows, as params say."""
    return narrowing.space_of(
        features.shape, params.sample.mlp_granularity, _sites(params, predictor, features, pairs)
    )


def _sites(
    params: Params, predictor: Predictor, features: Features, pairs: pd.DataFrame
) -> list[narrowing.NarrowedSite]:
    section = params.search
    importance = narrowing.importances(section.narrowing.by, predictor, features, pairs, section.objective)
    sample = params.sample
    prunable = prunable_sites(features.shape, sample.first_layers_kept, sample.last_layers_kept)
    return narrowing.narrow(features.shape, prunable, importance, section.narrowing)


def _known(
    designed: Sequence[Designed], pairs: pd.DataFrame, targets: Sequence[str]
) -> dict[Architecture, Metrics]:
    by_id = {d.architecture.id: d.architecture for d in designed}
    rows = pairs.set_index("architecture")[list(targets)].to_dict("index")
    return {by_id[str(key)]: {str(t): float(v) for t, v in values.items()} for key, values in rows.items()}


def _check_context(evaluator: Evaluator) -> None:
    path = DATA / "evaluate" / "context.json"
    found = read_json(path, "prunecast.context", 1)["digest"]
    if found != evaluator.digest:
        raise InputError(
            f"{path}: the pairs were measured in context {found}, and now it is {evaluator.digest}: model, "
            "text, parameters or code have changed since. Run `dvc repro`, which measures them again"
        )


def _front(
    guided: GuidedSearch,
    predictor: Predictor,
    known: Mapping[Architecture, Metrics],
    params: Params,
    features: Features,
) -> list[Work]:
    """The best forecast architecture at each further overall ratio: no new pairs are needed."""
    space = narrowed(params, predictor, features, guided.table(known))
    work = []
    for ratio in params.search.front:
        trials = guided.ask(predictor, space, params.search.rounds + 1, known, ratio)
        work.append(Work(min(trials, key=lambda t: (t.objective, t.number)).architecture, FRONT))
    return work


def _ranked(
    work: Sequence[Work],
    rows: Mapping[str, Row],
    predictor: Predictor,
    before: Mapping[Architecture, Metrics],
    features: Features,
    weights: Mapping[str, float],
) -> list[Candidate]:
    """Baselines, then finalists from best to worst measured, then the front; the best finalist wins.

    A forecast is the one made `before` the architecture was measured, or else the last predictor's.
    """
    forecasts = predictor.forecast(features.matrix([w.architecture for w in work]))
    found = []
    for index, item in enumerate(work):
        row = rows[item.architecture.id]
        last = {target: float(values[index]) for target, values in forecasts.items()}
        forecast = before.get(item.architecture, last)
        measured = tpe.objective_of(row.metrics, weights)
        found.append(
            Candidate(item.design, item.architecture, row.overall_ratio, row.metrics, forecast, measured)
        )
    finalists = sorted(
        (c for c in found if c.name == outcome.FINALIST), key=lambda c: (c.objective, c.architecture.id)
    )
    winner = Candidate(**{**finalists[0].__dict__, "name": outcome.WINNER})
    baselines = [c for c in found if c.name in designs.BASELINES]
    front = sorted((c for c in found if c.name == FRONT), key=lambda c: c.overall_ratio)
    return [*baselines, winner, *finalists[1:], *front]


def _write(
    params: Params,
    rounds: Sequence[Round],
    candidates: Sequence[Candidate],
    last: Predictor,
    features: Features,
    pairs: pd.DataFrame,
) -> None:
    rows = [
        {"round": r.number, "trial": t.number, "architecture": t.architecture.id, "objective": t.objective}
        | {f"forecast.{target}": value for target, value in t.forecast.items()}
        for r in rounds
        for t in r.trials
    ]
    trials = pd.DataFrame(rows)
    trials["best"] = trials.groupby("round")["objective"].cummin()
    trials.to_csv(HERE / "trials.csv", index=False)
    weights = params.search.objective
    errors = [{"round": r.number, "measured": len(r.measured), **r.errors(weights)} for r in rounds]
    pd.DataFrame(errors).to_csv(HERE / "rounds.csv", index=False)
    sites = _sites(params, last, features, pairs)
    space = narrowing.space_of(features.shape, params.sample.mlp_granularity, sites)
    narrowing.write(HERE / "narrowed_space.json", sites, space, params.search.narrowing.by)
    outcome.write(HERE / "outcome.json", list(candidates))
    by_name = {c.name: c for c in reversed(candidates)}
    content = {
        name: {"overall_ratio": c.overall_ratio, "objective": c.objective, **c.metrics}
        for name, c in by_name.items()
        if name not in (outcome.FINALIST, FRONT)
    }
    write_json(HERE / "metrics.json", "prunecast.search-metrics", 2, {"selection": content, "rounds": errors})


def _log(tracker: Tracker, params: Params, found: Round) -> None:
    """One run a round: its predictor, and its errors on what it had not seen."""
    section = params.search
    errors = found.errors(section.objective)
    text = ", ".join(f"{key} {value:.4f}" for key, value in errors.items())
    print(f"round {found.number}, forecasts against measurements: {text}", flush=True)
    about: dict[str, str | int] = {"round": found.number, "predictor": found.predictor.kind}
    about |= {"sampler": section.sampler, "trials": len(found.trials), "seed": section.seed}
    about |= {"measured": len(found.measured)}
    with tempfile.TemporaryDirectory() as folder:
        found.predictor.save(Path(folder) / "predictor")
        best = {"best_forecast_objective": min(t.objective for t in found.trials)}
        tracker.child(f"round {found.number}", about, errors | best, [Path(folder) / "predictor"])


def _track(tracker: Tracker, candidates: Sequence[Candidate], rows: Mapping[str, Row]) -> None:
    tags = {}
    for candidate in candidates:
        role = {"prunecast.role": candidate.name, "prunecast.objective": f"{candidate.objective:.4f}"}
        tags[rows[candidate.architecture.id].key] = role
    tracker.tag_evaluations(tags)
    names = ("trials.csv", "rounds.csv", "narrowed_space.json", "outcome.json")
    tracker.log_stage({}, {}, [HERE / name for name in names])


if __name__ == "__main__":
    main("search", run)
