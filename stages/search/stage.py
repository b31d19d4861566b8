"""Stage `search`: predictor -> rounds -> finalists -> best measured."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace

import pandas as pd

from stages.architecture import Architecture
from stages.build_dataset import table
from stages.build_dataset.features import Features
from stages.config.params import Measurement, Params, Part
from stages.evaluate.measure.evaluator import Evaluator
from stages.evaluate.measure.executors import Executor, Local
from stages.evaluate.measure.plan import Work
from stages.evaluate.measure.run import measure_all
from stages.evaluate.results import context
from stages.evaluate.results.context import Context
from stages.evaluate.results.damage import DamageCurves
from stages.evaluate.results.journal import Journal, Row
from stages.evaluate.workbench import Workbench, open_workbench
from stages.files import InputError
from stages.metrics.metric import Shown
from stages.metrics.registered import shown
from stages.sample import designs
from stages.sample.designs import Designed
from stages.sample.limits import Limited, limits_of
from stages.search import course, explain, front, narrowed_space, narrowing, outcome, results, tables
from stages.search.rounds import GuidedSearch, Metrics
from stages.stage import DATA
from stages.tracking.records import Use
from stages.tracking.tracker import open_tracker
from stages.train_predictor.predictor import Predictor

HERE = DATA / "search"
PAIRS_CONTEXT = DATA / "evaluate" / "context.json"


def run(params: Params, arguments: argparse.Namespace) -> None:
    architectures = DATA / "sample" / "architectures.json"
    shape, designed = designs.read(architectures)
    latency = designs.read_latency(architectures) if params.budget.timed else None
    limits = limits_of(shape, params.budget, latency)
    first = Predictor.load(DATA / "train_predictor" / "predictor")
    scores = DATA / "evaluate" / "importance.safetensors"
    curves = DamageCurves.read(DATA / "build_dataset" / "damage.json", stage="build-dataset")
    features = Features.of_model(shape, params.build_dataset.band, scores, curves)
    pairs, _, targets = table.read(DATA / "build_dataset" / "pairs.parquet")
    section, granularity = params.search, params.sample.mlp_granularity
    _, space = narrowing.narrowed(section, granularity, first, features, pairs)
    if params.budget.overall_ratio is not None:
        narrowing.check_reachable(space, params.budget.overall_ratio, "budget.overall_ratio")
    if limits:
        Limited(space, limits, params.budget.tolerance).check("the narrowed space")
    for ratio in params.search.front:
        narrowing.check_reachable(space, ratio, "search.front")
    with (
        Journal(HERE / "journal.jsonl") as journal,
        open_tracker("search", params, enabled=not arguments.no_tracking) as tracker,
    ):
        needed: list[tuple[Part, Measurement]] = [
            ("selection", s.measurement) for s in (params.evaluate, section)
        ]
        pruned = len(designs.baselines_of(designed)) - 1 + section.finalists + len(section.front)
        bench = open_workbench(
            params, DATA / "evaluate", needed, PAIRS_CONTEXT, own_weights=section.repair_again * pruned
        )
        as_pairs = bench.evaluator("selection", params.evaluate.measurement)
        _check_context(as_pairs)
        finally_ = bench.evaluator("selection", section.measurement)
        context.write(HERE / "context.json", Context(finally_.digest, finally_.context))

        def log_by(evaluator: Evaluator, use: Use) -> Callable[[Row], None]:
            words = evaluator.selection.words()
            return lambda row: tracker.log_evaluation(row, words, use)

        def measure(architectures: Sequence[Architecture], number: int) -> dict[Architecture, Metrics]:
            work = [Work(a, f"round-{number}", may_fail=True) for a in architectures]
            label = f"round {number} of {section.rounds}"
            rows = measure_all(as_pairs, bench.executor, work, journal, log_by(as_pairs, Use.PAIR), label)
            return {a: rows[a.id].metrics for a in architectures if a.id in rows}

        guided = GuidedSearch(
            features, targets, section, params.train_predictor, params.budget,
            lambda found, seen: narrowing.narrowed(section, granularity, found, features, seen)[1],
            measure, HERE / "studies.log", limits,
        )  # fmt: skip
        known = _known(designed, pairs, targets)
        pairs_known = known
        rounds, known = guided.run(known, first, lambda r: results.log_round(tracker, params, r))
        last = guided.learn(known)
        sites, space = narrowing.narrowed(section, granularity, last, features, guided.table(known))
        narrowed_space.write(HERE / "narrowed_space.json", sites, space, section.narrowing.by)
        work = [Work(d.architecture, d.design) for d in designs.baselines_of(designed)]
        work += [Work(a, outcome.FINALIST, may_fail=True) for a in guided.best(known)]
        work += front.work(guided, last, space, known)
        if section.repair_again:
            again = bench.repaired_again([bench.weights(w.architecture, again=False) for w in work])
            work = [replace(w, weights=weights) for w, weights in zip(work, again, strict=True)]
        rows = measure_all(
            finally_, *_to_measure(bench, work), journal, log_by(finally_, Use.FINALIST), "finalists"
        )
        work = [w for w in work if w.architecture.id in rows]
        before = {t.architecture: t.forecast for r in rounds for t in r.chosen}
        candidates = results.ranked(work, rows, last, before, features, section.objective)
        tables.write_front(HERE / tables.FRONT, front.rows(candidates, shape, limits))
        course.write(HERE / tables.COURSE, course.course(guided, pairs_known, rounds))
        winner = outcome.candidate_of(candidates, outcome.WINNER).architecture
        around = explain.explanations(last, features, winner, granularity, sites, section.objective)
        explain.write(HERE / tables.EXPLAINED, around)
        steps = course.steps(guided, pairs_known, rounds)
        results.write(HERE, params, rounds, candidates, steps, finally_.protocol, limits)
        results.tell(tracker, HERE, candidates, rows)
    for candidate in candidates:
        decisive = ", ".join(f"{k} {v:.2f}" for k, v in shown(candidate.metrics, Shown.VERDICT).items())
        takes = "".join(f", {limit.name} {limit.of(candidate.architecture):.4g}" for limit in limits)
        told = f"{100 * candidate.overall_ratio:.2f} % {decisive}{takes}"
        print(f"{candidate.name:9} {candidate.architecture.id} {told}")


def _to_measure(bench: Workbench, work: Sequence[Work]) -> tuple[Executor, Sequence[Work]]:
    """Finalists and baselines as they are measured: after a recovery, if params ask for that, and by whom.

    What was pruned is trained alike and briefly; the weights that go on from here are those before it.
    """
    section = bench.params.search.recovery
    if section is None or section.method == "none":
        return bench.executor, work
    from stages.recovery.recovery import tried  # asks for packages that others do without
    from stages.recovery.text import training_text

    text = training_text(bench, section)
    pruned = [w for w in work if w.architecture != bench.network.shape.dense()]
    once = [w.weights or bench.weights(w.architecture, again=False) for w in pruned]
    after = [tried(bench, section, weights, text) for weights in once]
    trained = [replace(w, weights=weights) for w, weights in zip(pruned, after, strict=True)]
    return Local(), [*(w for w in work if w not in pruned), *trained]


def _known(
    designed: Sequence[Designed], pairs: pd.DataFrame, targets: Sequence[str]
) -> dict[Architecture, Metrics]:
    by_id = {d.architecture.id: d.architecture for d in designed}
    rows = pairs.set_index("architecture")[list(targets)].to_dict("index")
    return {by_id[str(key)]: {str(t): float(v) for t, v in values.items()} for key, values in rows.items()}


def _check_context(evaluator: Evaluator) -> None:
    found = context.read(PAIRS_CONTEXT).digest
    if found != evaluator.digest:
        raise InputError(
            f"{PAIRS_CONTEXT}: the pairs were measured in context {found}, and now it is {evaluator.digest}: "
            "model, text, parameters or code have changed since. Run `dvc repro`, which measures them again"
        )
