"""Stage `export`: winner -> Hugging Face folder, GGUF, final table, report.  Run: python -m stages.export"""

from __future__ import annotations

import argparse
import time
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import torch

from stages import invocation
from stages.architecture import Architecture
from stages.evaluate import checkpoint
from stages.evaluate.elastic import ElasticNetwork
from stages.evaluate.journal import Journal, Row, evaluation_of
from stages.evaluate.measure import Work
from stages.evaluate.workbench import Workbench, open_workbench
from stages.export import check, evidence, gguf_folder
from stages.export.huggingface import write_folder
from stages.export.model_card import model_card
from stages.export.report import ReportData, build_report, metrics, write_pictures
from stages.files import write_json, write_text
from stages.params import Params
from stages.sample.designs import BASELINES
from stages.sample.source import locate, read_licence
from stages.search import outcome
from stages.stage import DATA, main
from stages.tracking import Tracker, open_tracker

HERE = DATA / "export"
MODEL = HERE / "model"
GGUF = HERE / "gguf"


def run(params: Params, arguments: argparse.Namespace) -> None:
    start = time.perf_counter()
    candidates = outcome.read(DATA / "search" / "outcome.json")
    with (
        Journal(HERE / "journal.jsonl") as journal,
        open_tracker("export", params, enabled=not arguments.no_tracking) as tracker,
    ):
        bench = open_workbench(params, DATA / "evaluate" / "importance.safetensors")
        again = params.search.repair_again
        evaluator = bench.evaluator("report", params.export.measurement, again)
        winner = evidence.same_architecture(candidates, outcome.WINNER)
        checks = _export(bench, winner, getattr(torch, params.export.dtype))
        names = [*BASELINES, outcome.WINNER]
        work = [Work(evidence.same_architecture(candidates, name), name) for name in names]
        shape = bench.network.shape

        def log(row: Row) -> None:
            tracker.log_evaluation(evaluation_of(row, shape, "export"))

        measured = evaluator.measure_all(work, journal, log, "final table")
        rows = {w.design: measured[w.architecture.id] for w in work}
        texts = list(params.corpora.texts)
        importance, narrowed = evidence.narrowed_space(DATA / "search" / "narrowed_space.json")
        evaluators = {
            "pairs": bench.evaluator("selection", params.evaluate.measurement),
            "finalists": bench.evaluator("selection", params.search.measurement, again),
            "final table": evaluator,
        }
        seconds = round(time.perf_counter() - start)
        data = ReportData(
            model=params.model.source,
            shape=shape,
            contenders=[evidence.contender(name, row, shape) for name, row in rows.items()],
            pairs=evidence.measured_pairs(DATA / "train_predictor" / "forecasts.csv", texts),
            finalists=evidence.measured_finalists(candidates, texts),
            predictor=evidence.predictor_errors(DATA / "train_predictor" / "metrics.json"),
            importance=importance,
            narrowed=narrowed,
            protocol=evidence.protocol_of(evaluators, bench),
            corpora=evidence.corpora_of(bench),
            history=pd.read_csv(DATA / "search" / "trials.csv")["best"].tolist(),
            provenance=_provenance(winner, bench, seconds),
            export_check=checks,
            change_errors=evidence.paired_errors(rows),
        )
        _write(data, tracker, read_licence(locate(params.model)), rows[outcome.WINNER])


def _export(bench: Workbench, winner: Architecture, dtype: torch.dtype) -> list[tuple[str, str]]:
    """Write the winner's folder and prove it; slices float32 weights, whatever dtype measured them."""
    network = bench.network
    if network.device.type != "cpu" or network.dtype != torch.float32:
        network = ElasticNetwork(checkpoint.load(bench.params.model), torch.device("cpu"))
        network.sort(bench.scores.order())
        network.repair = bench.calibration.repair(network, bench.scores)
    plain = network.repair
    if bench.params.search.repair_again:
        network.repair = bench.calibration.repair_again(network, bench.scores, winner)
    try:
        return _write_and_check(bench, network, winner, dtype)
    finally:
        network.repair = plain


def _write_and_check(
    bench: Workbench, network: ElasticNetwork, winner: Architecture, dtype: torch.dtype
) -> list[tuple[str, str]]:
    loaded, state = bench.checkpoint, network.sliced_state(winner)
    write_folder(
        MODEL, state, loaded.config, winner, network.shape,
        loaded.tokenizer, loaded.generation_config, dtype,
    )  # fmt: skip
    some = next(iter(bench.texts.values())).parts["selection"][0].text
    tokens = torch.tensor([loaded.tokenizer(some, add_special_tokens=False)["input_ids"][:256]])
    difference = check.logit_difference(MODEL, network, winner, tokens)
    print(
        f"export: {MODEL} loads in a fresh process; largest logit difference from the measured network "
        f"{difference:.2e} on {tokens.numel()} tokens ({str(dtype).removeprefix('torch.')} weights)",
        flush=True,
    )
    check.check(difference, dtype)
    params = bench.params
    files = gguf_folder.write_folder(GGUF, params.model, loaded, state, winner, params.export.gguf)
    for label, result in files:
        print(f"export: {label} {result}", flush=True)
    size = sum(file.stat().st_size for file in MODEL.glob("*.safetensors"))
    return [
        ("loads with from_pretrained in a fresh process", "yes"),
        ("largest logit difference", f"{difference:.2e} (allowed {check.TOLERANCE[dtype]:g})"),
        ("weights on disk", f"{size / 1e6:.1f} MB in {str(dtype).removeprefix('torch.')}"),
        *files,
    ]


def _provenance(winner: Architecture, bench: Workbench, seconds: int) -> list[tuple[str, str]]:
    commit = invocation.git_commit()
    return [
        ("architecture", winner.id),
        (
            "git commit",
            "not in a git repository" if commit is None else commit[0] + (" (modified)" if commit[1] else ""),
        ),
        ("weights of the dense model", f"SHA-256 {bench.checkpoint.digest[:16]}…"),
        ("written", datetime.now(UTC).isoformat(timespec="minutes")),
        ("export stage", f"{seconds} s on {torch.get_num_threads()} threads, PyTorch {torch.__version__}"),
    ]


def _write(data: ReportData, tracker: Tracker, licence: str, winner_row: Row) -> None:
    pictures = write_pictures(data, HERE / "pictures")
    report = HERE / "report.html"
    write_text(report, build_report(data))
    content = metrics(data)
    write_json(HERE / "metrics.json", "prunecast.final-metrics", 1, content)
    for picture in pictures:
        (MODEL / picture.name).write_bytes(picture.read_bytes())
    own_code = (MODEL / "modeling_prunecast.py").is_file()
    card = model_card(data, data.winner, licence, remote_code=own_code, pictures=[p.name for p in pictures])
    write_text(MODEL / "README.md", card)
    changes = content["winner_change_percent"]
    tracker.tag_evaluations({winner_row.key: {"prunecast.role": outcome.WINNER}})
    tracker.log_stage(
        evidence.flat_metrics(data.contenders, changes),
        {},
        [report, HERE / "metrics.json", HERE / "pictures"],
    )
    _print_table(data, changes, report)


def _print_table(data: ReportData, changes: dict[str, dict[str, float]], report: Path) -> None:
    for c in data.contenders:
        values = "  ".join(f"{key} {value:.3f}" for key, value in c.metrics.items())
        print(f"{c.name:8} {100 * c.overall_ratio:6.2f} %  {values}")
    for baseline, of_baseline in changes.items():
        print(f"winner against {baseline}: " + ", ".join(f"{k} {v:+.2f} %" for k, v in of_baseline.items()))
    print(f"report: {report}")


if __name__ == "__main__":
    main("export", run)
