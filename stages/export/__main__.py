"""Stage `export`: winner -> Hugging Face folder, GGUF, final table, report.  Run: python -m stages.export"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from stages.architecture import Architecture, ModelShape
from stages.config.params import Export, Params
from stages.evaluate.measure.plan import Work
from stages.evaluate.measure.run import measure_all
from stages.evaluate.network.weights import PrunedNetwork, PrunedWeights
from stages.evaluate.results.journal import Journal, Row
from stages.evaluate.workbench import Workbench, open_workbench
from stages.export.benchmark import comparison, proof
from stages.export.benchmark.comparison import Proof
from stages.export.benchmark.limits import taken
from stages.export.benchmark.runtimes import has_llama_cpp
from stages.export.benchmark.speed import Load
from stages.export.gguf import folder as gguf_folder
from stages.export.report import gather, gather_forecasts, model_card
from stages.export.report.base_model import BaseModel, read_base_model
from stages.export.report.page import ReportData, build_report, metrics, write_pictures
from stages.export.report.question_groups import question_groups
from stages.export.staging import replacing, require_space
from stages.export.weights import check
from stages.export.weights.huggingface import write_folder
from stages.files import write_json, write_text
from stages.sample import designs
from stages.sample.designs import BASELINES
from stages.sample.source import read_shape
from stages.search import narrowed_space, outcome, tables
from stages.search.outcome import Candidate
from stages.stage import DATA, main
from stages.tracking import invocation
from stages.tracking.records import ExportedModel, Role
from stages.tracking.tracker import Tracker, open_tracker

HERE = DATA / "export"
MODEL, GGUF, PICTURES, REPORT, METRICS = "model", "gguf", "pictures", "report.html", "metrics.json"
PROOF = "proof.json"
_GGUF_BYTES = {"F16": 2.0, "Q8_0": 1.1, "Q4_0": 0.6}  # a parameter


def run(params: Params, arguments: argparse.Namespace) -> None:
    candidates = outcome.read(DATA / "search" / "outcome.json")
    winner = gather.same_architecture(candidates, outcome.WINNER)
    size = _size_bytes(winner, read_shape(params.model), params.export)
    require_space(HERE, size if arguments.no_tracking else 2 * size)  # MLflow's registry keeps a copy
    with (
        Journal(HERE / "journal.jsonl") as journal,
        open_tracker("export", params, enabled=not arguments.no_tracking) as tracker,
    ):
        with replacing(HERE) as new:
            data, row = _make(new, params, candidates, journal, tracker)
        _log(data, row, tracker)
    _print_table(data)


def _size_bytes(winner: Architecture, shape: ModelShape, section: Export) -> int:
    """About what the export takes on the disk, the dense model of the proof included."""
    parameters = shape.total_parameters - shape.decoder_parameters + winner.kept_parameters(shape)
    dtype: torch.dtype = getattr(torch, section.dtype)
    files = sum(_GGUF_BYTES[kind] for kind in section.gguf)
    size = parameters * (dtype.itemsize + files) + 30_000_000  # tokenizers, pictures, report
    if section.proof is not None:
        size += shape.total_parameters * (dtype.itemsize + (files if has_llama_cpp() else 0))
    return int(size)


def _make(
    new: Path, params: Params, candidates: Sequence[Candidate], journal: Journal, tracker: Tracker
) -> tuple[ReportData, Row]:
    """Write everything into `new`, and measure the final table for it; also the winner's row."""
    start = time.perf_counter()
    bench = open_workbench(params, DATA / "evaluate" / "importance.safetensors")
    again = params.search.repair_again
    evaluator = bench.evaluator("report", params.export.measurement)
    winner = gather.same_architecture(candidates, outcome.WINNER)
    asked = params.export.proof
    load = proof.load_of(params, bench.checkpoint, bench.texts, asked) if asked else None  # or is refused
    exact = bench.exact()
    checks = export_weights(
        exact, exact.weights(winner, again), new / MODEL, getattr(torch, params.export.dtype)
    )
    contenders = {name: gather.same_architecture(candidates, name) for name in (*BASELINES, outcome.WINNER)}
    work = [Work(a, name, bench.weights(a, again)) for name, a in contenders.items()]
    shape = bench.network.shape
    table = designs.read_latency(DATA / "sample" / "architectures.json")
    takes = taken(shape, params.budget, table, {w.design: w.architecture for w in work}, new / MODEL)

    def log(row: Row) -> None:
        tracker.log_evaluation(row, shape, evaluator.selection.words())

    measured = measure_all(evaluator, bench.executor, work, journal, log, "final table")
    rows = {w.design: measured[w.architecture.id] for w in work}
    proven = _prove(bench, winner, new, load)
    texts = list(params.corpora.texts)
    narrowed = narrowed_space.read(DATA / "search" / "narrowed_space.json")
    errors = DATA / "train_predictor" / "metrics.json"
    evaluators = {
        "pairs": bench.evaluator("selection", params.evaluate.measurement),
        "finalists": bench.evaluator("selection", params.search.measurement),
        "final table": evaluator,
    }
    seconds = round(time.perf_counter() - start)
    data = ReportData(
        model=params.model.source,
        shape=shape,
        contenders=[gather.contender(name, row, shape) for name, row in rows.items()],
        pairs=gather.measured_pairs(DATA / "train_predictor" / "forecasts.csv", texts),
        finalists=gather.measured_finalists(candidates, texts),
        predictor=gather_forecasts.predictor_errors(errors),
        narrowed={str(n.site): n for n in narrowed.sites},
        protocol=gather.protocol_of(evaluators, bench),
        corpora=gather.corpora_of(bench),
        history=tables.read_history(DATA / "search" / "trials.csv"),
        provenance=_provenance(winner, bench, tracker.run, seconds),
        export_check=checks,
        change_errors=gather.paired_errors(rows),
        question_groups=question_groups(rows, evaluator.selection.items),
        protocol_entries=evaluator.protocol,
        taken=takes,
        narrowed_by=narrowed.ranked_by,
        front=gather_forecasts.front_points(DATA / "search" / "front.csv"),
        trust=gather_forecasts.trust(
            errors, DATA / "train_predictor" / "ablation.csv", DATA / "search" / "rounds.csv"
        ),
        proof=proven,
    )
    _write(new, data, read_base_model(params.model), f"prunecast-{MODEL}" if tracker.run else "")
    return data, rows[outcome.WINNER]


def export_weights(
    bench: Workbench, weights: PrunedWeights, folder: Path, dtype: torch.dtype
) -> list[tuple[str, str]]:
    """Write the weights' folder and GGUF files, and prove that the folder computes what they do.

    `bench` and its weights are exact (`Workbench.exact`); lines for the report are returned.
    """
    loaded, state, architecture = bench.checkpoint, weights.make(), weights.architecture
    write_folder(
        folder, state, loaded.config, architecture, loaded.shape,
        loaded.tokenizer, loaded.generation_config, dtype,
    )  # fmt: skip
    documents = next(iter(bench.texts.values())).parts["selection"]
    some = "\n\n".join(document.text for document in documents[:100])
    tokens = torch.tensor([loaded.tokenizer(some, add_special_tokens=False)["input_ids"][:256]])
    network = PrunedNetwork(architecture, state, bench.network)
    difference = check.logit_difference(folder, network, tokens)
    print(
        f"export: the model loads in a fresh process; largest logit difference from the measured network "
        f"{difference:.2e} on {tokens.numel()} tokens ({str(dtype).removeprefix('torch.')} weights)",
        flush=True,
    )
    check.check(difference, dtype)
    params = bench.params
    files = gguf_folder.write_folder(
        folder.parent / GGUF, params.model, loaded, state, architecture, params.export.gguf
    )
    for label, result in files:
        print(f"export: {label} {result}", flush=True)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return [
        ("loads with from_pretrained in a fresh process", "yes"),
        ("largest logit difference", f"{difference:.2e} (allowed {check.TOLERANCE[dtype]:g})"),
        ("weights on disk", f"{size / 1e6:.1f} MB in {str(dtype).removeprefix('torch.')}"),
        *files,
    ]


def _prove(bench: Workbench, winner: Architecture, new: Path, load: Load | None) -> Proof:
    """The proof of what was written to `new`, beside which the dense model stands for a while."""
    if load is None:
        return Proof(remarks=("Nothing was measured: export.proof in params.yaml is null.",))
    found = proof.prove(bench.params.model, bench.checkpoint, new, winner, load, new / "dense")
    print(comparison.speedups(found.comparisons), *found.remarks, sep="\n", flush=True)
    return found


def _provenance(winner: Architecture, bench: Workbench, run: str, seconds: int) -> list[tuple[str, str]]:
    commit = invocation.git_commit()
    return [
        ("architecture", winner.id),
        (
            "git commit",
            "not in a git repository" if commit is None else commit[0] + (" (modified)" if commit[1] else ""),
        ),
        ("MLflow run", f"{run}, experiment {bench.params.tracking.experiment}" if run else "not tracked"),
        ("weights of the dense model", f"SHA-256 {bench.checkpoint.digest[:16]}…"),
        ("written", datetime.now(UTC).isoformat(timespec="minutes")),
        ("export stage", f"{seconds} s on {torch.get_num_threads()} threads, PyTorch {torch.__version__}"),
    ]


def _write(new: Path, data: ReportData, base: BaseModel, registered: str) -> None:
    """The report, the metrics and the model card, into the folder that `export_weights` began."""
    pictures = write_pictures(data, new / PICTURES)
    write_text(new / REPORT, build_report(data))
    write_json(new / METRICS, "prunecast.final-metrics", 1, metrics(data))
    comparison.write(new / PROOF, data.proof)
    shown = [picture for picture in pictures if picture.stem in model_card.PICTURES]
    for file in (*shown, *base.terms):
        shutil.copy(file, new / MODEL)
    own_code = (new / MODEL / "modeling_prunecast.py").is_file()
    names = [picture.name for picture in shown]
    files = [f"../{GGUF}/{path.name}" for path in sorted((new / GGUF).glob("*.gguf"))]
    card = model_card.model_card(
        data, data.winner, base, own_code=own_code, pictures=names, registered=registered, gguf=files
    )
    write_text(new / MODEL / "README.md", card)


def _log(data: ReportData, winner_row: Row, tracker: Tracker) -> None:
    """Log the final table and register the model."""
    tracker.tag_roles({winner_row.key: Role(outcome.WINNER)})
    tracker.log_stage(
        gather.flat_metrics(data.contenders, metrics(data)["winner_change_percent"])
        | {f"winner.{t.name}": t.measured[outcome.WINNER] for t in data.taken}
        | comparison.flat(data.proof),
        [HERE / REPORT, HERE / METRICS, HERE / PROOF, HERE / PICTURES],
    )
    winner, card = data.winner, (HERE / MODEL / "README.md").read_text(encoding="utf-8")
    exported = ExportedModel(
        winner.architecture.id, data.model, winner.overall_ratio, winner.parameters, winner.metrics
    )
    registered = tracker.log_model(exported, HERE / MODEL, MODEL, model_card.body(card))
    if registered:
        print(f"registered in MLflow as {registered}, the champion", flush=True)


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


if __name__ == "__main__":
    main("export", run)
