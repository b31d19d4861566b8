"""Measure architectures: one evaluator for a model, a part of the corpora and a protocol.

The same inputs give the same values: on a CPU (with as many threads) to the last digit, whatever was
measured before and however many first layers were shared; on a GPU of one type log perplexities lie
within `GPU_TOLERANCE` of each other (``python -m tests.benchmarks.determinism`` measures both).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stages.architecture import Architecture
from stages.evaluate.network import decoder
from stages.evaluate.network.batch import Batch
from stages.evaluate.network.elastic import ElasticNetwork
from stages.evaluate.network.prefix import SharedPrefix
from stages.evaluate.network.repair import Repair
from stages.evaluate.network.weights import PrunedNetwork, PrunedWeights, ready
from stages.evaluate.text import mmlu, perplexity
from stages.evaluate.text.selection import Selection
from stages.files import InputError, digest
from stages.metrics.metric import format_of
from stages.metrics.registered import of_questions, of_text

VERSION = 1
"""The version of measured values, set by hand: raise it when they change for the same network and text."""

TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 65536}
"""Tokens run at once. Fixed a device, because the grouping decides the last digits of a result."""

GPU_TOLERANCE = 1e-4
"""How far an architecture's log perplexity may move, relatively, when it is measured again on a GPU."""


class Evaluator:
    """Measures architectures of one elastic network, repaired, on one part of the corpora.

    Attributes:
        protocol: how each figure is measured, with its counts (`Selection.protocol`).
        context: everything that decides a measured value, readable; its digest goes into every key.
    """

    def __init__(
        self,
        network: ElasticNetwork,
        repair: Repair,
        selection: Selection,
        identity: Mapping[str, Any],
        cache_bytes: int,
    ) -> None:
        self.network = network
        self.repair = repair
        self.selection = selection
        self.protocol = selection.protocol()
        limit = TOKENS_PER_BATCH[network.device.type]
        self._texts = {
            name: perplexity.batches(rows.tokens, limit, rows.predicted)
            for name, rows in selection.windows.items()
        }
        self._questions = {
            name: mmlu.batches(chosen, limit, shared=format_of(name) == "letter")
            for name, chosen in selection.items.items()
        }
        self.context = self._context(identity)
        self.digest = digest(self.context)
        self._cache_bytes = cache_bytes
        self.remark = ""
        """What the user is to know of how it was measured, where there is anything."""
        self._place()

    def _place(self) -> None:
        """Put the batches onto the device, with no hidden states yet."""
        self._batches = [b.to(self.network.device) for b in self._all_batches()]
        self._prefix = SharedPrefix(self.network, self._batches, self._cache_bytes, self.repair)

    def _halve(self) -> bool:
        """Halve the batches and the hidden states in common; whether anything can be halved."""
        before = len(self._batches), self._cache_bytes
        for every in (self._texts, self._questions):
            every |= {name: [h for b in batches for h in b.halves()] for name, batches in every.items()}
        self._cache_bytes //= 2
        self._place()
        return (len(self._batches), self._cache_bytes) != before

    def _all_batches(self) -> list[Batch]:
        every = [*self._texts.values(), *self._questions.values()]
        return [batch for batches in every for batch in batches]

    def _context(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **identity,
            "part": self.selection.part,
            "measurement": self.selection.measurement.model_dump(),
            "protocol": self.protocol,
            "metrics": self._versions(),
            "texts": {name: _batch_digest(batches) for name, batches in self._texts.items()},
            "questions": {
                name: {
                    "tokens": _batch_digest(batches),
                    "answers": "".join(str(item.answer) for item in self.selection.items[name]),
                }
                for name, batches in self._questions.items()
            },
            "device": self.network.device.type,
            "dtype": str(self.network.dtype).removeprefix("torch."),
            "versions": {"network": decoder.VERSION, "values": VERSION},
        }

    def _versions(self) -> dict[str, int]:
        """The version of every metric that is measured, by its key."""
        metrics = [m for text in self._texts for m in of_text(text)]
        metrics += [m for questions in self._questions for m in of_questions(questions)]
        return {metric.key: metric.version for metric in metrics}

    def key(self, architecture: Architecture, weights: PrunedWeights | None = None) -> str:
        """The journal key of an architecture in this context: a prefix view, or weights of its own."""
        own = "" if weights is None else f" {weights.digest}"
        return hashlib.sha256(f"{self.digest} {architecture.id}{own}".encode()).hexdigest()[:16]

    def measure(
        self,
        architecture: Architecture,
        branches: Collection[int] = (),
        weights: PrunedWeights | None = None,
    ) -> tuple[dict[str, float], dict[str, list[float]]]:
        """Metrics of one architecture by key, and the samples, a window or a question each, behind them.

        It is a prefix view, whose hidden states are kept at the depths in `branches` for the ones after
        it; or `weights`, which share nothing where a step has made others of what was cut.
        """
        metrics: dict[str, float] = {}
        samples: dict[str, list[float]] = {}
        with torch.inference_mode():
            results = iter(self._in_memory(architecture, set(branches), weights))
            for name, batches in self._texts.items():
                rows = self.selection.windows[name]
                found = _take(results, batches)
                means, parts = perplexity.scores(found, len(rows.tokens), rows.size_bytes, name)
                metrics |= means
                samples |= parts
            for name, batches in self._questions.items():
                means, parts = mmlu.scores(_take(results, batches), self.selection.items[name], name)
                metrics |= means
                samples |= parts
        return metrics, samples

    def _in_memory(
        self, architecture: Architecture, branches: set[int], weights: PrunedWeights | None
    ) -> list[Tensor]:
        """Log-likelihoods of every batch's targets; a GPU whose memory ends goes on with smaller batches."""
        own = None if weights is None or weights.is_view else self._own(weights)
        while True:
            try:
                return self._log_likelihoods(architecture, branches, own)
            except torch.OutOfMemoryError as error:
                halved, said = self._halve(), str(error).split(". ")[0]
            if not halved:
                raise InputError(
                    f"the GPU's memory does not hold one sequence of the measurement ({said}); free some of "
                    "it, raise evaluate.gpu_memory_gib, or lower the measurement's sequence_length"
                )
            torch.cuda.empty_cache()
            self.remark = f"The GPU's memory ended ({said}): batches are halved"

    def _own(self, weights: PrunedWeights) -> PrunedNetwork:
        try:
            return ready(weights, self.network)
        except torch.OutOfMemoryError as error:
            raise InputError(
                "the GPU's memory does not hold what weights of an architecture's own take beside the dense "
                f"ones ({str(error).split('. ')[0]}); free some, raise evaluate.gpu_memory_gib, or take a "
                "GPU with more"
            ) from error

    def _log_likelihoods(
        self, architecture: Architecture, branches: set[int], own: PrunedNetwork | None
    ) -> list[Tensor]:
        if own is None:
            return self._prefix.log_likelihoods(architecture, branches)
        return [own.log_likelihoods(architecture, batch) for batch in self._batches]


def _take(results: Any, batches: Sequence[Batch]) -> Tensor:
    return torch.cat([next(results).cpu() for _ in batches])


def _batch_digest(batches: Sequence[Batch]) -> str:
    found = hashlib.sha256()
    for batch in batches:
        for tensor in (batch.tokens, batch.at, batch.targets):
            found.update(tensor.numpy().tobytes())
    return found.hexdigest()[:16]
