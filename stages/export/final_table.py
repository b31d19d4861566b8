"""Measure the final table: dense, uniform, simple, winner and recovered ones, on the report part."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from stages.architecture import ModelShape
from stages.evaluate.measure.evaluator import Evaluator
from stages.evaluate.measure.executors import Local
from stages.evaluate.measure.plan import Work
from stages.evaluate.measure.run import measure_all
from stages.evaluate.results.errors import metric_errors, standard_error
from stages.evaluate.results.journal import Journal, Row
from stages.evaluate.workbench import Workbench
from stages.export.answers import answers
from stages.export.benchmark.alternatives import alternatives
from stages.export.benchmark.limits import taken
from stages.export.question_groups import question_groups
from stages.export.results.final_table import (
    RECOVERED,
    Contender,
    FinalTable,
    SearchStep,
    recovered_of,
    subject_of,
)
from stages.export.weights.export import weights_of
from stages.metrics.metric import Shown
from stages.metrics.registered import metric_of, shown
from stages.recovery.recovered import Recovered
from stages.sample import designs
from stages.sample.designs import BASELINES, DENSE
from stages.search.outcome import WINNER, Candidate, Step, candidate_of
from stages.stage import DATA
from stages.tracking.records import Use
from stages.tracking.tracker import Tracker


def measure(
    bench: Workbench,
    candidates: Sequence[Candidate],
    steps: Sequence[Step],
    recovered: Mapping[str, Recovered],
    folder: Path,
    journal: Journal,
    tracker: Tracker,
) -> FinalTable:
    """The final table, measured or taken from the journal; the winner is the model in `folder`.

    `recovered` has weights after their recovery, by candidate; `steps` are those of the search.

    Raises:
        InputError: the report part of a corpus is too small.
    """
    params, shape = bench.params, bench.network.shape
    evaluator = bench.evaluator("report", params.export.measurement)
    chosen = [c for c in candidates if c.name in (*BASELINES, WINNER)]
    contenders = {candidate.name: candidate.architecture for candidate in chosen}
    table = designs.read_latency(DATA / "sample" / "architectures.json")
    takes = taken(shape, params.budget, table, contenders, folder)
    words = evaluator.selection.words()
    work = [Work(c.architecture, c.name, weights_of(bench, c)) for c in chosen]

    def log(row: Row) -> None:
        tracker.log_evaluation(row, words, Use.FINAL_TABLE)

    measured = measure_all(evaluator, bench.executor, work, journal, log, "final table")
    rows = {name: measured[architecture.id] for name, architecture in contenders.items()}
    for name, after in recovered.items():
        own = [Work(contenders[name], recovered_of(name), after.weights)]
        rows |= {
            recovered_of(name): row
            for row in measure_all(evaluator, Local(), own, journal, log, recovered_of(name)).values()
        }
    found_steps = _steps(bench, steps, journal, tracker)
    compared = {WINNER: weights_of(bench, candidate_of(chosen, WINNER))}
    if RECOVERED in rows:
        compared[RECOVERED] = recovered[WINNER].weights
    exported = RECOVERED if RECOVERED in compared else WINNER
    section = params.export
    others = []
    if section.alternatives is not None:
        models = {DENSE: bench.weights(shape.dense(), again=False), exported: compared[exported]}
        others = alternatives(bench, section.alternatives, models, journal, tracker)
    said = None
    if section.answers is not None:
        windows = section.measurement.model_copy(update={"windows": section.answers.windows})
        texts_alone = bench.evaluator("report", windows, texts_alone=True).selection
        said = answers(bench, section.answers, texts_alone, compared)
    evaluators = {
        "pairs": bench.evaluator("selection", params.evaluate.measurement),
        "finalists": bench.evaluator("selection", params.search.measurement),
        "final table": evaluator,
    }
    return FinalTable(
        contenders=[contender(name, row, shape) for name, row in rows.items()],
        change_errors=paired_errors(rows),
        question_groups=question_groups(rows, evaluator.selection.items),
        taken=takes,
        protocol=[*protocol_of(evaluators, bench), *_tried_words(bench), *_recovery_words(recovered)],
        protocol_entries=evaluator.protocol,
        words=words,
        rows={name: row.key for name, row in rows.items()},
        curves={recovered_of(name): after.curve for name, after in recovered.items()},
        steps=found_steps,
        alternatives=others,
        answers=said,
    )


def _steps(bench: Workbench, steps: Sequence[Step], journal: Journal, tracker: Tracker) -> list[SearchStep]:
    """What the search would have ended with at each step, on the texts of the report part alone."""
    if not steps or not bench.texts:
        return []
    evaluator = bench.evaluator("report", bench.params.export.measurement, texts_alone=True)
    named = {step.architecture: step.name for step in reversed(steps)}
    work = [Work(architecture, name, may_fail=True) for architecture, name in named.items()]
    words = evaluator.selection.words()

    def log(row: Row) -> None:
        tracker.log_evaluation(row, words, Use.STEP)

    rows = measure_all(evaluator, bench.executor, work, journal, log, "steps of the search")
    found: list[SearchStep] = []
    first: Row | None = None
    for step in steps:
        row = rows.get(step.architecture.id)
        if row is None:
            continue
        metrics = shown(row.metrics, Shown.VERDICT)
        changes = {} if first is None else {k: 100 * (v / first.metrics[k] - 1) for k, v in metrics.items()}
        errors = {} if first is None else change_errors(row, first, metrics)
        found.append(
            SearchStep(
                step.name, step.architecture.id, step.evaluations, step.objective, metrics, changes, errors
            )
        )
        first = first or row
    return found


def contender(name: str, row: Row, shape: ModelShape) -> Contender:
    """A row of the final table."""
    metrics = shown(row.metrics, Shown.REPORT)
    errors = metric_errors(row, metrics)
    return Contender(
        name, row.architecture, row.overall_ratio, row.architecture.total_parameters(shape), metrics, errors
    )


def paired_errors(rows: Mapping[str, Row]) -> dict[str, dict[str, float]]:
    """Standard errors, in percentage points, of the relative change against each baseline of its subject.

    From differences paired window by window and question by question, so that how hard the text
    is cancels out.
    """
    found: dict[str, dict[str, float]] = {}
    for baseline in rows:
        if baseline == DENSE or subject_of(baseline) not in rows or subject_of(baseline) == baseline:
            continue
        ours = rows[subject_of(baseline)]
        found[baseline] = change_errors(ours, rows[baseline], shown(ours.metrics, Shown.REPORT))
    return found


def change_errors(ours: Row, other: Row, keys: Iterable[str]) -> dict[str, float]:
    """Standard errors, in percentage points, of the relative changes of some metrics against another row."""
    errors = {}
    for key in keys:
        metric, theirs = metric_of(key), other.metrics[key]
        both = (row.samples[metric.sampled.key] for row in (ours, other))
        error = metric.slope(ours.metrics) * standard_error([a - b for a, b in zip(*both, strict=True)])
        if theirs and math.isfinite(error):  # of one window there is none
            errors[key] = 100 * error / abs(theirs)
    return errors


def protocol_of(evaluators: Mapping[str, Evaluator], bench: Workbench) -> list[tuple[str, str]]:
    """How every figure was measured, one line a corpus, format and use."""
    section = bench.params.evaluate
    lines = []
    for use, evaluator in evaluators.items():
        for corpus, words in evaluator.selection.words().items():
            lines.append((f"{corpus}, {use}", words))
    calibration = section.calibration
    lines.append(("Repair", _repair_words(bench)))
    lines.append(
        (
            "Importance",
            f"{section.importance}, on {calibration.samples} windows of {calibration.sequence_length} tokens "
            f"of the calibration parts{_conversation_words(bench)}",
        )
    )
    lines.append(
        ("Arithmetic", f"{bench.network.dtype} on {bench.network.device.type}".replace("torch.", ""))
    )
    return lines


def _recovery_words(recovered: Mapping[str, Recovered]) -> list[tuple[str, str]]:
    """What recovery did, and to whom."""
    if WINNER not in recovered:
        return []
    others = [name for name in recovered if name != WINNER]
    alike = f"; {' and '.join(others)} alike" if others else "; uniform and simple were not recovered"
    return [("Recovery", f"{recovered[WINNER].words}{alike}")]


def _tried_words(bench: Workbench) -> list[tuple[str, str]]:
    """What was done to finalists and baselines before the search compared them."""
    section = bench.params.search.recovery
    if section is None or section.method == "none":
        return []
    what = f"{section.method}, {section.tokens:,} tokens at most"
    return [("Finalists", f"compared after a recovery of each ({what}), which was not kept")]


def _conversation_words(bench: Workbench) -> str:
    """What calibrated beside the texts: conversations that the dense model wrote."""
    if not bench.conversations.calibration:
        return ""
    count = bench.params.evaluate.calibration.conversations
    return f", and {count} of conversations that the dense model wrote in its chat template"


def _repair_words(bench: Workbench) -> str:
    """What was done to output projections, of the pruned baselines as of the winner."""
    words = bench.repair.words
    if bench.params.search.repair_again:
        words += "; finalists refitted again, layer after layer, on their own inputs"
    return f"{words}; uniform and simple alike"
