"""Dense and exported model in other types of weights, and what both say: rows and sentences of the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stages.export.benchmark.comparison import Figures
from stages.export.report.data import ReportData
from stages.export.results.final_table import Alternative
from stages.metrics.registered import metric_of
from stages.sample.designs import DENSE


def beaten(alternatives: Sequence[Alternative]) -> dict[tuple[str, str], Alternative]:
    """The alternatives that another one beats, by model and type, with the smallest that does.

    That one is no larger, on no text worse, and not equal in all.
    """
    found = {}
    for one in alternatives:
        better = [other for other in alternatives if _beats(other, one)]
        if better:
            found[one.model, one.type] = min(better, key=lambda other: other.size_bytes)
    return found


def _beats(one: Alternative, other: Alternative) -> bool:
    if one.size_bytes > other.size_bytes or one.metrics.keys() != other.metrics.keys():
        return False
    pairs = [(metric_of(k).cost(v), metric_of(k).cost(other.metrics[k])) for k, v in one.metrics.items()]
    same = one.size_bytes == other.size_bytes and all(a == b for a, b in pairs)
    return not same and all(a <= b for a, b in pairs)


def words(data: ReportData) -> list[str]:
    """Whether quantising alone would have served, in sentences; nothing where that was not measured."""
    dense = [a for a in data.alternatives if a.model == DENSE]
    ours = [a for a in data.alternatives if a.model != DENSE]
    if not dense or not ours:
        return []
    found = []
    better = {one.type: [other for other in dense if _beats(other, one)] for one in ours}
    by_type = {kind: min(b, key=lambda other: other.size_bytes) for kind, b in better.items() if b}
    for by in dense:
        than = [one for one in ours if by_type.get(one.type) is by]
        if than:
            told = " and ".join(f"{one.type} ({_size(one)})" for one in than)
            found.append(
                f"Where only bytes are short, quantise instead: the dense model in {by.type} takes "
                f"{_size(by)} and is on no text worse than the pruned one in {told}."
            )
    smallest = min(ours, key=lambda one: one.size_bytes)
    if all(smallest.size_bytes < other.size_bytes for other in dense):
        cost = ", ".join(f"{v:.2f} on {metric_of(k).corpus}" for k, v in smallest.metrics.items())
        found.append(
            f"The pruned model in {smallest.type}, {_size(smallest)}, is smaller than the dense one in any "
            f"of these types (perplexity {cost})."
        )
    elif not found:
        found.append("In no type does a dense model as small do as well.")
    return found


def _size(one: Alternative) -> str:
    return f"{one.size_bytes / 1e6:,.0f} MB"


def rows(data: ReportData) -> list[dict[str, Any]]:
    """A row a model and type, the largest first."""
    lost = beaten(data.alternatives)
    ordered = sorted(data.alternatives, key=lambda one: -one.size_bytes)
    largest = max((one.size_bytes for one in ordered if one.model == DENSE), default=0)
    return [
        {
            "name": f"{who(one.model)}, {one.type}",
            "size": f"{one.size_bytes / 1e6:,.1f} MB",
            "share": f"{100 * one.size_bytes / largest:.0f} % of the largest dense" if largest else "",
            "texts": [
                (f"{value:,.2f}", _error(one.standard_errors.get(key, math.nan)))
                for key, value in one.metrics.items()
            ],
            "speeds": _speeds(measured(data).get((one.model, one.type))),
            "beaten": f"by {_name(lost[one.model, one.type])}" if (one.model, one.type) in lost else "",
        }
        for one in ordered
    ]


def _speeds(figures: Figures | None) -> list[str]:
    spreads = [] if figures is None else [figures.prefill, figures.decode]
    return [f"{s.median:,.0f}" if s.median >= 100 else f"{s.median:.3g}" for s in spreads]


def who(model: str) -> str:
    """What the reader knows a contender as: everything that is not dense was pruned."""
    return "dense" if model == DENSE else "pruned"


def _name(one: Alternative) -> str:
    return f"{who(one.model)} {one.type}"


def _error(error: float) -> str:
    return f"± {error:.2f}" if math.isfinite(error) else ""


def measured(data: ReportData) -> dict[tuple[str, str], Figures]:
    """What llama.cpp took, by contender and type, where the proof of speed ran it."""
    found: dict[tuple[str, str], Figures] = {}
    for comparison in data.proof.comparisons:
        if comparison.runtime == "llama.cpp":
            found[DENSE, comparison.weights] = comparison.dense
            found[data.exported.name, comparison.weights] = comparison.pruned
    return found


def divergence_words(data: ReportData) -> list[str]:
    """How far each model's predictions are from the dense one's, a sentence a model."""
    if data.answers is None:
        return []
    return [
        f"The predictions of {name} differ from the dense model's by "
        + " and ".join(
            f"{value:.3f}{_pm(data.answers.divergence_errors.get(name, {}), text)} nats a token on {text}"
            for text, value in by_text.items()
        )
        + " (Kullback-Leibler divergence)."
        for name, by_text in data.answers.divergence.items()
    ]


def _pm(errors: Mapping[str, float], text: str) -> str:
    error = errors.get(text, math.nan)
    return f" ± {error:.3f}" if math.isfinite(error) else ""


def said(data: ReportData) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each prompt with the answers to it, by who said them; the dense model first."""
    if data.answers is None:
        return []
    return [
        (prompt, [(name, texts[place].strip()) for name, texts in data.answers.texts.items()])
        for place, prompt in enumerate(data.answers.prompts)
    ]
