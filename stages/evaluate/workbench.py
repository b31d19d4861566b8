"""A model on a device with its units sorted, and the corpora: what every measuring stage starts from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from stages.evaluate import checkpoint, perplexity
from stages.evaluate.checkpoint import Checkpoint
from stages.evaluate.corpora import Corpus, Document, Question, load_questions, load_texts
from stages.evaluate.elastic import Batch, ElasticNetwork
from stages.evaluate.importance import UnitScores, taylor
from stages.evaluate.measure import Evaluator, code_digest
from stages.files import InputError
from stages.params import Measurement, Params, Part


@dataclass(frozen=True)
class Workbench:
    """The opened model and corpora."""

    params: Params
    checkpoint: Checkpoint
    network: ElasticNetwork
    scores: UnitScores
    texts: Mapping[str, Corpus[Document]]
    questions: Mapping[str, Corpus[Question]]

    def evaluator(self, part: Part, measurement: Measurement) -> Evaluator:
        """Measures on one part of the corpora.

        Raises:
            InputError: a corpus is too small for the measurement.
        """
        identity = {
            "model": self.checkpoint.name,
            "weights": self.checkpoint.digest,
            "importance": self.params.evaluate.importance.model_dump(),
            "unit_order": self.scores.digest,
        }
        return Evaluator(
            self.network,
            self.checkpoint.tokenizer,
            self.texts,
            self.questions,
            part,
            measurement,
            identity,
            self.params.evaluate.prefix_cache_mb * 2**20,
        )


def device_and_dtype(params: Params) -> tuple[torch.device, torch.dtype]:
    """Resolve `auto`: the GPU in bfloat16 where there is one, else the CPU in float32.

    Raises:
        InputError: a GPU is asked for and none is there.
    """
    wanted = params.evaluate.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("evaluate.device is 'cuda', but PyTorch finds no GPU; use auto or cpu")
    name = ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
    dtype = params.evaluate.dtype
    if dtype == "auto":
        dtype = "bfloat16" if name == "cuda" else "float32"
    return torch.device(name), getattr(torch, dtype)


def calibration_batch(
    bench_checkpoint: Checkpoint, texts: Mapping[str, Corpus[Document]], samples: int, length: int
) -> Batch:
    """`samples` windows of `length` tokens of the calibration parts, spread evenly over the texts."""
    names = list(texts)
    rows = []
    for index, name in enumerate(names):
        count = samples // len(names) + (index < samples % len(names))
        if count:
            where = f"corpora.texts.{name}, part calibration,"
            documents = texts[name].parts["calibration"]
            rows.append(perplexity.windows(documents, bench_checkpoint.tokenizer, length, count, where))
    (batch,) = perplexity.batches(torch.cat(rows), samples * length)
    return batch


def open_workbench(params: Params, scores_path: Path) -> Workbench:
    """Load model and corpora, and sort the units by importance.

    Scores at `scores_path` are used if they were computed from the same things; otherwise they
    are computed and written there.

    Raises:
        InputError: anything that `params` names is missing, empty, too short or unsupported.
    """
    texts = load_texts(params.corpora)
    questions = load_questions(params.corpora)
    device, dtype = device_and_dtype(params)
    loaded = checkpoint.load(params.model, dtype)
    importance = params.evaluate.importance
    batch = calibration_batch(loaded, texts, importance.samples, importance.sequence_length)
    network = ElasticNetwork(loaded, device)
    basis = {
        "weights": loaded.digest,
        "importance": importance.model_dump(),
        "tokens": hashlib.sha256(batch.tokens.numpy().tobytes()).hexdigest(),
        "dtype": str(dtype),
        "code": code_digest(),
    }
    key = hashlib.sha256(json.dumps(basis, sort_keys=True).encode()).hexdigest()[:16]
    scores = UnitScores.load(scores_path, key)
    if scores is None:
        print(f"Scoring units by {importance.method} importance on {batch.tokens.numel()} tokens", flush=True)
        scores = taylor(network, batch.to(device))
        scores.save(scores_path, key)
    network.sort(scores.order())
    return Workbench(params, loaded, network, scores, texts, questions)
