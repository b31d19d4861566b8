"""What decides each part of an export, as keys: known from files, without opening the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from stages.config.params import ModelSection, Params
from stages.evaluate.results import context
from stages.export.benchmark import alternatives
from stages.export.benchmark.runtimes import has_llama_cpp
from stages.export.results.record import ExportPart
from stages.files import digest, digest_of_file
from stages.sample.designs import BASELINES
from stages.sample.digests import noted_digest
from stages.sample.source import locate
from stages.search import outcome
from stages.search.outcome import Candidate, Step

VERSIONS = {ExportPart.WEIGHTS: 3, ExportPart.TABLE: 3, ExportPart.PROOF: 1}
"""Raised by hand with every change of the code that makes a part, where what is made changes."""

_NO_VALUES = {
    "prefix_cache_mb",
    "cache_mb",
    "gpu_memory_gib",
    "ray",
}  # of `evaluate`: they decide no value
_OF_A_MODEL = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")


def keys(
    params: Params, data: Path, candidates: Sequence[Candidate], steps: Sequence[Step] = ()
) -> dict[ExportPart, str]:
    """A key a part, of everything that decides it.

    What the finalists were measured in, and the digest of the winner's own weights if it has some, follow
    the versions of network, importance and repair; beside them stand the files that nothing else watches.

    Raises:
        InputError: the model is not there, or a file of a stage before.
    """
    winner = outcome.candidate_of(candidates, outcome.WINNER)
    measured_in = context.read(data / "search" / "context.json", "search").digest
    evaluate, export = params.evaluate.model_dump(exclude=_NO_VALUES), params.export
    cut_from = {
        "model": params.model.model_dump(),
        "source": {file.name: noted_digest(file)[:16] for file in _source_files(params.model)},
        "importance": digest_of_file(data / "evaluate" / "importance.safetensors"),
        "division": digest_of_file(data / "evaluate" / "division.json"),
        "context": measured_in,
        "weights": winner.weights,
        "evaluate": evaluate,
        "repair_again": params.search.repair_again,
    }
    recovery = export.recovery.model_dump(exclude={"baselines"})
    recovers = export.recovery.method != "none"
    if recovers:
        cut_from |= {"recovery": recovery, "chosen by": params.search.objective}
    weights = _key(ExportPart.WEIGHTS, cut_from, winner.architecture.id, export.dtype, list(export.gguf))
    return {
        ExportPart.WEIGHTS: weights,
        ExportPart.TABLE: _key(
            ExportPart.TABLE,
            weights,
            [c.architecture.id for c in candidates if c.name in BASELINES],
            [(step.name, step.architecture.id, step.evaluations, step.objective) for step in steps],
            params.corpora.model_dump(),
            params.budget.model_dump(),
            digest_of_file(data / "sample" / "architectures.json"),
            digest_of_file(data / "evaluate" / "conversations.json"),
            params.search.measurement.model_dump(),
            export.measurement.model_dump(),
            [None if s is None else s.model_dump() for s in (export.answers, export.alternatives)],
            alternatives.VERSION,
            *(["baselines recovered"] if recovers and export.recovery.baselines else []),
        ),
        ExportPart.PROOF: _key(
            ExportPart.PROOF,
            weights,
            None if export.proof is None else export.proof.model_dump(),
            export.measurement.text.__dict__,
            has_llama_cpp(),
        ),
    }


def _key(part: ExportPart, *parts: object) -> str:
    return digest(part, VERSIONS[part], *parts)


def _source_files(model: ModelSection) -> Iterator[Path]:
    path = locate(model).path
    if path.is_file():
        yield path
    else:
        yield from sorted(file for pattern in _OF_A_MODEL for file in path.glob(pattern))
