"""Measure architectures: one evaluator for a model, a part of the corpora and a protocol.

The same inputs give the same values: on a CPU (with as many threads) to the last digit, whatever was
measured before and however many first layers were shared; on a GPU of one type log perplexities lie
within `GPU_TOLERANCE` of each other (``python -m tests.benchmarks.determinism`` measures both).
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from stages.architecture import Architecture
from stages.evaluate.calibrate.reconstruction import Reconstruction
from stages.evaluate.network.batch import Batch
from stages.evaluate.network.elastic import ElasticNetwork
from stages.evaluate.network.repair import Repair
from stages.evaluate.network.prefix import SharedPrefix, branch_depths, tree_order
from stages.evaluate.results.journal import Journal, Row
from stages.evaluate.text import mmlu, perplexity
from stages.evaluate.text.selection import Selection
from stages.files import InputError
from stages.metrics.metric import Shown, format_of
from stages.metrics.registered import of_questions, of_text, shown

TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 65536}
"""Tokens run at once. Fixed a device, because the grouping decides the last digits of a result."""

GPU_TOLERANCE = 1e-4
"""By which log perplexities of one architecture may differ, relatively, when measured again on a GPU."""


@dataclass(frozen=True)
class Work:
    """An architecture to measure, and the name of the design or search that wants it."""

    architecture: Architecture
    design: str


class Evaluator:
    """Measures architectures of one elastic network on one part of the corpora.

    Attributes:
        protocol: how each figure is measured, with its counts (`Selection.protocol`).
        context: everything that decides a measured value, readable; its digest goes into every key.
    """

    def __init__(
        self,
        network: ElasticNetwork,
        selection: Selection,
        identity: Mapping[str, Any],
        cache_bytes: int,
        again: Callable[[Architecture], Repair | None] | None = None,
    ) -> None:
        self._again = again
        self.network = network
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
        self._prefix = SharedPrefix(network, [b.to(network.device) for b in self._all_batches()], cache_bytes)

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
            "code": code_digest(),
        }

    def _versions(self) -> dict[str, int]:
        """By key, of everything that is measured."""
        metrics = [m for text in self._texts for m in of_text(text)]
        metrics += [m for questions in self._questions for m in of_questions(questions)]
        return {metric.key: metric.version for metric in metrics}

    def key(self, architecture: Architecture) -> str:
        """The journal key of an architecture in this context."""
        return hashlib.sha256(f"{self.digest} {architecture.id}".encode()).hexdigest()[:16]

    def measure(
        self, architecture: Architecture, branches: set[int] | None = None
    ) -> tuple[dict[str, float], dict[str, list[float]]]:
        """Metrics of one architecture by key, and the samples, a window or a question each, behind them."""
        metrics: dict[str, float] = {}
        samples: dict[str, list[float]] = {}
        with torch.inference_mode():
            results = iter(self._log_likelihoods(architecture, branches or set()))
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

    def _log_likelihoods(self, architecture: Architecture, branches: set[int]) -> list[Tensor]:
        if self._again is None:
            return self._prefix.log_likelihoods(architecture, branches)
        # Weights of its own: nothing is shared with the architectures before and after.
        plain = self.network.repair
        try:
            self.network.repair = self._again(architecture)
            self._prefix.forget()
            return self._prefix.log_likelihoods(architecture, set())
        finally:
            self.network.repair = plain

    def measure_all(
        self, work: Sequence[Work], journal: Journal, after: Callable[[Row], None], label: str
    ) -> dict[str, Row]:
        """Measure what the journal does not hold yet, row by row; return all rows by architecture id.

        `after` is called with every row, old and new.
        """
        wanted = {w.architecture: w for w in work}
        done = {a: journal.rows[k] for a in wanted if (k := self.key(a)) in journal.rows}
        for row in done.values():
            after(row)
        todo = tree_order([a for a in wanted if a not in done])
        if done:
            print(
                f"{label}: {len(done)} of {len(wanted)} architectures are in the journal already", flush=True
            )
        rows = {a.id: row for a, row in done.items()}
        if isinstance(self.network.repair, Reconstruction):
            self.network.repair.prepare(todo)
        bar = tqdm(
            zip(todo, branch_depths(todo), strict=True), total=len(todo), desc=label, unit="architecture"
        )
        for architecture, branches in bar:
            row = self._row(wanted[architecture], branches)
            journal.append(row)
            rows[architecture.id] = row
            after(row)
            decisive = shown(row.metrics, Shown.VERDICT)
            bar.set_postfix_str(", ".join(f"{key} {value:.1f}" for key, value in decisive.items()))
        return rows

    def _row(self, work: Work, branches: set[int]) -> Row:
        start = time.perf_counter()
        metrics, samples = self.measure(work.architecture, branches)
        wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
        if wrong:
            raise InputError(
                f"architecture {work.architecture.id} measured {metrics[wrong[0]]} as its "
                f"{wrong[0]}; expected a finite number. In {self.context['dtype']} that can be an overflow: "
                "try evaluate.dtype: float32"
            )
        return Row(
            key=self.key(work.architecture),
            context=self.digest,
            architecture=work.architecture,
            design=work.design,
            overall_ratio=work.architecture.overall_ratio(self.network.shape),
            metrics=metrics,
            samples=samples,
            seconds=round(time.perf_counter() - start, 3),
            measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def _take(results: Any, batches: Sequence[Batch]) -> Tensor:
    return torch.cat([next(results).cpu() for _ in batches])


def _batch_digest(batches: Sequence[Batch]) -> str:
    found = hashlib.sha256()
    for batch in batches:
        for tensor in (batch.tokens, batch.at, batch.targets):
            found.update(tensor.numpy().tobytes())
    return found.hexdigest()[:16]


def digest(*parts: object) -> str:
    """A short digest of what JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def code_digest() -> str:
    """Digest of the code that decides measured values: this room's modules and the hall's shapes.

    Comments, docstrings and formatting do not count, so that writing them does not cost a
    measurement; a change of the code makes every older row another context's.
    """
    room = Path(__file__).parent
    hall = room.parent
    files = [*(room / "network").glob("*.py"), *(room / "calibrate").glob("*.py"), Path(__file__)]
    files += [room / "text" / "perplexity.py", room / "text" / "mmlu.py"]
    files += [hall / "families" / "family.py", hall / "families" / "recipe.py", hall / "architecture.py"]
    found = hashlib.sha256()
    for path in sorted(files):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                body[:] = [part for part in body if not _is_docstring(part)]
        found.update(ast.dump(tree).encode())
    return found.hexdigest()[:16]


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def standard_error(samples: Sequence[float]) -> float:
    """Of the mean of independent samples; NaN for fewer than two."""
    n = len(samples)
    if n < 2:
        return math.nan
    return statistics.stdev(samples) / math.sqrt(n)
