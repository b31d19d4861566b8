"""Measure what the journal does not hold yet: plan it, run it, record it, show it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from stages.evaluate.measure.evaluator import Evaluator
from stages.evaluate.measure.executors import Executor, Measured
from stages.evaluate.measure.plan import Work, subtrees
from stages.evaluate.results.journal import Journal, Row
from stages.files import InputError
from stages.metrics.metric import Shown
from stages.metrics.registered import shown
from stages.progress import Progress
from stages.signals import deferred


def measure_all(
    evaluator: Evaluator,
    executor: Executor,
    works: Sequence[Work],
    journal: Journal,
    after: Callable[[Row], None],
    label: str,
) -> dict[str, Row]:
    """Measure the works, row by row; returns all rows by architecture id, but those that failed.

    `after` is called with every row, old and new. Of works of one architecture the last counts.

    Raises:
        InputError: a measured value of a work that may not fail is no finite number, or the journal cannot
            be written.
    """
    wanted = {work.architecture: work for work in works}
    keys = {a: evaluator.key(a, work.weights) for a, work in wanted.items()}
    rows = {a.id: journal.rows[key] for a, key in keys.items() if key in journal.rows}
    if rows:
        print(f"{label}: {len(rows)} of {len(wanted)} architectures are in the journal already", flush=True)
    for row in rows.values():
        after(row)
        _check(evaluator, row, wanted[row.architecture])
    missing = [work for a, work in wanted.items() if a.id not in rows]
    todo = subtrees(missing, executor.parts) if missing else []
    total = sum(len(subtree.works) for subtree in todo)
    bar = Progress(executor.run(evaluator, todo), total=total, desc=label, unit="architecture")
    said = {""}
    try:
        for measured in bar:
            if measured.remark not in said:
                said.add(measured.remark)
                Progress.write(measured.remark)
            row = recorded(evaluator, measured)
            with deferred():
                journal.append(row)
                rows[row.architecture.id] = row
                after(row)
            _check(evaluator, row, wanted[row.architecture])
            decisive = shown(row.metrics, Shown.VERDICT)
            bar.set_postfix_str(", ".join(f"{key} {value:.1f}" for key, value in decisive.items()))
    except KeyboardInterrupt as stopped:
        stopped.add_note(f"{label}: {len(rows)} of {len(wanted)} architectures are in {journal.path}")
        raise
    return {name: row for name, row in rows.items() if not row.failed}


def _check(evaluator: Evaluator, row: Row, work: Work) -> None:
    """Name an architecture that failed.

    Raises:
        InputError: it may not fail.
    """
    if not row.failed:
        return
    found = (
        f"architecture {row.architecture.id} ({work.design}): {row.failed}; expected a finite number. In "
        f"{evaluator.context['dtype']} that can be an overflow: try evaluate.dtype: float32; where that is "
        "set, the weights are damaged"
    )
    if not work.may_fail:
        raise InputError(found)
    Progress.write(f"{found}. It is recorded as failed, and nothing is learned from it")


def recorded(evaluator: Evaluator, measured: Measured) -> Row:
    """The journal's row of what was measured: a failed one where a value is no finite number."""
    work, metrics, samples = measured.work, measured.metrics, measured.samples
    wrong = [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if wrong:
        metrics, samples = {}, {}
    return Row(
        key=evaluator.key(work.architecture, work.weights),
        context=evaluator.digest,
        architecture=work.architecture,
        design=work.design,
        overall_ratio=work.architecture.overall_ratio(evaluator.network.shape),
        metrics=metrics,
        samples=samples,
        seconds=measured.seconds,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        weights="" if work.weights is None else work.weights.digest,
        failed=wrong[0] if wrong else "",
    )
