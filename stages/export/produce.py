"""Make the parts of an export: weights, final table, proof of speed. All that needs the model."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from stages.architecture import Architecture
from stages.config.params import ModelSection, Params
from stages.evaluate.measurements import measured_on, prompts_of
from stages.evaluate.network.checkpoint import Checkpoint
from stages.evaluate.results.journal import Journal
from stages.evaluate.workbench import Workbench, open_workbench
from stages.export import final_table
from stages.export.base_model import read_base_model
from stages.export.benchmark import comparison, proof
from stages.export.benchmark.comparison import Proof
from stages.export.benchmark.speed import Load
from stages.export.results import record
from stages.export.results.final_table import PRUNED_BASELINES, FinalTable
from stages.export.results.record import MODEL, PROOF, BaseModel, ExportPart, Record
from stages.export.weights.export import export_weights, weights_of
from stages.export.weights.recover import recover
from stages.recovery.recovered import Recovered
from stages.search import outcome
from stages.search.outcome import Candidate, Step
from stages.stage import DATA
from stages.tracking import invocation
from stages.tracking.records import Numbers
from stages.tracking.tracker import Tracker


def produce(
    params: Params,
    candidates: Sequence[Candidate],
    steps: Sequence[Step],
    keys: Mapping[ExportPart, str],
    todo: Collection[ExportPart],
    before: Record | None,
    here: Path,
    new: Path,
    journal: Journal,
    tracker: Tracker,
) -> Record:
    """Make the parts `todo` of the winner's export, write them into `new`, and say what was made.

    The other parts are those of the export `before`, whose files are in `here`.

    Raises:
        InputError: the model's weights are not those that the search measured, a corpus is too small, or
            what was written is not what was measured.
    """
    start = time.perf_counter()
    made, load = _of_model(params, candidates, steps, todo, before, here, new, journal, tracker)
    torch.cuda.empty_cache()  # dense and exported model take the place of what measured
    if ExportPart.PROOF in todo:
        comparison.write(new / PROOF, _prove(params.model, made, new / "dense", load))
    kept: dict[str, str] = {}
    for part in ExportPart:
        kept |= before.files_of(part) if before is not None and part not in todo else {}
    return Record(
        keys=keys,
        files=kept | record.checksums(new),
        model=params.model.source,
        texts=list(params.corpora.texts),
        base=made.base,
        checks=made.checks,
        table=made.table,
        provenance=[*made.provenance, _took(round(time.perf_counter() - start))],
        extensions=params.extensions,
        registered="",
    )


@dataclass(frozen=True)
class _Made:
    """What an opened model was needed for, and the checkpoint, which alone is held from here on."""

    loaded: Checkpoint
    winner: Architecture
    written: Path
    checks: Sequence[tuple[str, str]]
    base: BaseModel
    table: FinalTable
    provenance: Sequence[tuple[str, str]]


def _of_model(
    params: Params,
    candidates: Sequence[Candidate],
    steps: Sequence[Step],
    todo: Collection[ExportPart],
    before: Record | None,
    here: Path,
    new: Path,
    journal: Journal,
    tracker: Tracker,
) -> tuple[_Made, Load | None]:
    """The weights and the final table, and what the proof of speed will run."""
    searched = DATA / "search" / "context.json"
    needed = [(part, measurement) for _, part, measurement, _ in measured_on(params) if part == "report"]
    bench = open_workbench(
        params, DATA / "evaluate", needed, searched, prompts=prompts_of(params), own_weights=1
    )
    winner = outcome.candidate_of(candidates, outcome.WINNER)
    asked = params.export.proof
    load = proof.load_of(params, bench.checkpoint, bench.texts, asked) if asked else None  # or is refused
    recovered = _recovered(bench, candidates, todo, tracker)
    if before is None or ExportPart.WEIGHTS in todo:
        dtype: torch.dtype = getattr(torch, params.export.dtype)
        after = recovered.get(outcome.WINNER)
        weights = weights_of(bench, winner) if after is None else after.weights
        checks = export_weights(bench, weights, new / MODEL, dtype)
        base = read_base_model(params.model)
        for file in base.terms:
            shutil.copy(file, new / MODEL)
        base = replace(base, terms=tuple(Path(file.name) for file in base.terms))
        written = new
    else:
        checks, base, written = list(before.checks), before.base, here
    if before is None or ExportPart.TABLE in todo:
        table = final_table.measure(bench, candidates, steps, recovered, written / MODEL, journal, tracker)
    else:
        table = before.table
    provenance = _provenance(winner.architecture, bench, tracker.run)
    return _Made(bench.checkpoint, winner.architecture, written, checks, base, table, provenance), load


def _recovered(
    bench: Workbench, candidates: Sequence[Candidate], todo: Collection[ExportPart], tracker: Tracker
) -> dict[str, Recovered]:
    """The candidates that params recover, by name, where weights or final table are made."""
    section = bench.params.export.recovery
    if section.method == "none" or not {ExportPart.WEIGHTS, ExportPart.TABLE} & {*todo}:
        return {}
    names = [outcome.WINNER, *(PRUNED_BASELINES if section.baselines else ())]
    chosen = [candidate for candidate in candidates if candidate.name in names]

    def tell(candidate: Candidate, numbers: Numbers) -> None:
        of_winner = candidate.name == outcome.WINNER
        tracker.log_curve("recovery" if of_winner else f"recovery.{candidate.name}", numbers)

    found = recover(bench, chosen, tell)
    return {candidate.name: each for candidate, each in zip(chosen, found, strict=True)}


def _prove(source: ModelSection, made: _Made, scratch: Path, load: Load | None) -> Proof:
    """The proof of what was written, beside which the dense model stands in `scratch` for a while."""
    if load is None:
        return Proof(remarks=("Nothing was measured: export.proof in params.yaml is null.",))
    found = proof.prove(source, made.loaded, made.written, made.winner, load, scratch)
    print(comparison.speedups(found.comparisons), *found.remarks, sep="\n", flush=True)
    return found


def _provenance(winner: Architecture, bench: Workbench, run: str) -> list[tuple[str, str]]:
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
    ]


def _took(seconds: int) -> tuple[str, str]:
    return "export stage", f"{seconds} s on {torch.get_num_threads()} threads, PyTorch {torch.__version__}"
