"""Stage `evaluate`: architectures -> a journal of measured architectures."""

from __future__ import annotations

import argparse

from stages.config.params import Params
from stages.evaluate.measure.plan import Work
from stages.evaluate.measure.run import measure_all
from stages.evaluate.measurements import measured_on, prompts_of
from stages.evaluate.results import context, division
from stages.evaluate.results.context import Context
from stages.evaluate.results.journal import Journal, Row
from stages.evaluate.text.corpora import divided
from stages.evaluate.workbench import open_workbench
from stages.metrics.metric import Shown
from stages.metrics.registered import shown
from stages.sample import designs
from stages.stage import DATA
from stages.tracking.records import Use
from stages.tracking.tracker import open_tracker


def run(params: Params, arguments: argparse.Namespace) -> None:
    here = DATA / "evaluate"
    drawn = DATA / "sample" / "architectures.json"
    shape, designed = designs.read(drawn)
    designs.check_model(drawn, shape, params.model)
    with (
        Journal(here / "journal.jsonl") as journal,
        open_tracker("evaluate", params, enabled=not arguments.no_tracking) as tracker,
    ):
        needed = [(part, measurement) for _, part, measurement, _ in measured_on(params)]
        bench = open_workbench(params, here, needed, prompts=prompts_of(params))
        evaluator = bench.evaluator("selection", params.evaluate.measurement)
        division.write(here / "division.json", divided({**bench.texts, **bench.questions}))
        context.write(here / "context.json", Context(evaluator.digest, evaluator.context))

        def log(row: Row) -> None:
            tracker.log_evaluation(row, evaluator.selection.words(), Use.PAIR)

        bench.calibration.curves(bench.network, bench.repair, here / "curvature.json")
        work = [Work(d.architecture, d.design, may_fail=d.design not in designs.BASELINES) for d in designed]
        rows = measure_all(evaluator, bench.executor, work, journal, log, "evaluate")
    print("selection part:", end="")
    for baseline in designs.baselines_of(designed):
        decisive = shown(rows[baseline.architecture.id].metrics, Shown.VERDICT)
        print(f" {baseline.design} { ({key: round(value, 2) for key, value in decisive.items()}) }", end="")
    print()
