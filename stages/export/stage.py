"""Stage `export`: winner -> Hugging Face folder, GGUF, final table, report.

What the record of the export before says is as asked for is not made again: then no model is opened, and
the report alone is made anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from stages.architecture import Architecture, ModelShape
from stages.config.budget import BYTES
from stages.config.params import Export, Params
from stages.evaluate.results import context
from stages.evaluate.results.journal import Journal
from stages.export.benchmark import comparison
from stages.export.benchmark.runtimes import has_llama_cpp
from stages.export.keys import keys
from stages.export.report.build import METRICS, PICTURES, REPORT, write_card, write_report
from stages.export.report.data import ReportData, flat_metrics, metrics, write_summary
from stages.export.report.from_files import read_report, read_stages
from stages.export.report.model_card import body, note
from stages.export.results import record
from stages.export.results.final_table import recovered_of
from stages.export.results.record import JOURNAL, MODEL, PROOF, RECORD, ExportPart, Record
from stages.export.results.staging import replacing, require_space
from stages.files import digest
from stages.sample.source import read_shape
from stages.search import outcome
from stages.search.outcome import Candidate, Step
from stages.stage import DATA
from stages.tracking import names
from stages.tracking.records import ExportedModel, Role, Use
from stages.tracking.tracker import Tracker, open_tracker

HERE = DATA / "export"
SUMMARY = DATA / "summary.json"
_MEASURED = ("weights", "part", "protocol", "metrics", "texts", "questions", "dtype")
"""What of a context decides how the pruned model was measured, and not what it became."""
_GGUF_BYTES = {"F16": 2.0, "Q8_0": 1.1, "Q4_0": 0.6}  # a parameter


def run(params: Params, arguments: argparse.Namespace) -> None:
    files = read_stages(DATA)  # all that the report will show: damage is told before the work
    candidates = files.candidates
    wanted = keys(params, DATA, candidates, files.steps)
    before = record.read_if_there(HERE / RECORD)
    with Journal(HERE / JOURNAL) as journal:
        todo = [
            part
            for part in ExportPart
            if before is None or not before.holds(part, wanted[part], HERE, journal.rows)
        ]
        if ExportPart.WEIGHTS in todo:
            winner = outcome.candidate_of(candidates, outcome.WINNER).architecture
            copies = 1 if arguments.no_tracking else 2  # MLflow's registry keeps one
            require_space(HERE, _size_bytes(winner, read_shape(params.model), params.export, copies))
        with open_tracker("export", params, enabled=not arguments.no_tracking) as tracker:
            data = _export(params, candidates, files.steps, wanted, before, todo, journal, tracker)
    _print_table(data)


def _export(
    params: Params,
    candidates: Sequence[Candidate],
    steps: Sequence[Step],
    wanted: Mapping[ExportPart, str],
    before: Record | None,
    todo: Collection[ExportPart],
    journal: Journal,
    tracker: Tracker,
) -> ReportData:
    """Make the parts `todo`, and the report of all of them."""
    with replacing(HERE) as new:
        if before is None or todo:
            from stages.export.produce import produce  # opens the model

            _say(todo)
            found = produce(params, candidates, steps, wanted, todo, before, HERE, new, journal, tracker)
        else:
            print("export: all of the export before is as asked for: the report alone is made anew")
            found = before
        anew = ExportPart.WEIGHTS in todo
        registered = names.registered(_called(params, candidates), params.model.source)
        found = replace(found, registered=_registered(before or found, anew, tracker, registered))
        record.write(new / RECORD, found)
        proven = new / PROOF if ExportPart.PROOF in todo else HERE / PROOF
        data = read_report(DATA, found, comparison.read(proven))
        write_report(data, new)
        if anew:
            write_card(data, found, new, new / PICTURES)
    write_summary(SUMMARY, data)
    card = write_card(data, found, HERE, HERE / PICTURES)
    _tell(params, candidates, data, found, card, journal, tracker)
    return data


def _say(todo: Collection[ExportPart]) -> None:
    kept = [part.value for part in ExportPart if part not in todo]
    if kept:
        print(f"export: as asked for already, and kept: {', '.join(kept)}", flush=True)


def _registered(found: Record, anew: bool, tracker: Tracker, registered: str) -> str:
    """The name under which MLflow's registry has the model, `registered` by this run, or nothing.

    Where this run does not track, a model that was not written `anew` is registered as it was before.
    """
    if tracker.run:
        return registered
    return "" if anew else found.registered


def _size_bytes(winner: Architecture, shape: ModelShape, section: Export, copies: int) -> int:
    """About what the export takes on the disk: copies of its folder, GGUF files, the proof's dense model."""
    parameters = winner.total_parameters(shape)
    files = sum(_GGUF_BYTES[kind] for kind in section.gguf)
    size = parameters * (copies * BYTES[section.dtype] + files) + 30_000_000  # tokenizers, pictures, report
    if section.proof is not None:
        size += shape.total_parameters * (BYTES[section.dtype] + (files if has_llama_cpp() else 0))
    return int(size)


def _tell(
    params: Params,
    candidates: Sequence[Candidate],
    data: ReportData,
    found: Record,
    card: str,
    journal: Journal,
    tracker: Tracker,
) -> None:
    """Log the final table, where it is not logged yet, and register the model."""
    for key in found.table.rows.values():
        tracker.log_evaluation(journal.rows[key], found.table.words, Use.FINAL_TABLE)
    tracker.tag_roles({found.table.rows[outcome.WINNER]: Role(outcome.WINNER)})
    tracker.log_stage(
        flat_metrics(data)
        | {f"winner.{t.name}": t.measured[outcome.WINNER] for t in data.taken}
        | comparison.flat(data.proof),
        [HERE / REPORT, HERE / METRICS, HERE / PROOF, HERE / PICTURES],
        note(data),
    )
    found_model = data.exported
    exported = ExportedModel(
        found_model.architecture.id,
        data.model,
        found_model.overall_ratio,
        found_model.parameters,
        found_model.metrics,
        *_objective(params, candidates, found),
    )
    registered = tracker.log_model(exported, HERE / MODEL, _called(params, candidates), body(card))
    if registered:
        print(f"registered in MLflow as {registered}", flush=True)


def _called(params: Params, candidates: Sequence[Candidate]) -> str:
    """What the model is registered as: the ratio that is asked for, or by limits the winner's."""
    asked, winner = params.budget.overall_ratio, outcome.candidate_of(candidates, outcome.WINNER)
    share = 100 * (winner.overall_ratio if asked is None else asked)
    return f"{MODEL}-{share:.3g}pct"


def _objective(params: Params, candidates: Sequence[Candidate], found: Record) -> tuple[float, str]:
    """The objective of what is exported, on the selection part, and a digest of how it was measured."""
    searched = context.read(DATA / "search" / "context.json", "search").content
    measured = digest({key: searched.get(key) for key in _MEASURED}, params.search.objective)
    objective = outcome.candidate_of(candidates, outcome.WINNER).objective
    curve = found.table.curves.get(recovered_of(outcome.WINNER))
    trained = [] if curve is None else [value for _, value in curve.objective]
    return min([objective, *trained]), measured  # of a training that lost, the weights before it are exported


def _print_table(data: ReportData) -> None:
    for c in data.contenders:
        values = "  ".join(f"{key} {value:.3f}" for key, value in c.metrics.items())
        print(f"{c.name:8} {100 * c.overall_ratio:6.2f} %  {values}")
    for t in data.taken:
        share = t.share_error_percent
        print(
            f"{t.name}: limit {t.most:g}, the winner's forecast {t.forecast[outcome.WINNER]:.5g}, "
            f"measured {t.measured[outcome.WINNER]:.5g} ({t.error_percent:+.1f} %"
            + ("" if share is None else f"; as shares of the dense model, timed in turn, {share:+.1f} %")
            + ")"
        )
    for baseline, of_baseline in metrics(data)["winner_change_percent"].items():
        print(f"winner against {baseline}: " + ", ".join(f"{k} {v:+.2f} %" for k, v in of_baseline.items()))
    print(f"report: {HERE / REPORT}")
