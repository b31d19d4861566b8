"""The verdict in words, computed from the final table: honest whichever way it falls."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from stages.export.report import alternatives
from stages.export.report.data import ReportData, change_percent, inseparable, judge
from stages.export.results.final_table import PRUNED_BASELINES, RECOVERED, Contender, recovered_of, subject_of
from stages.metrics.formats import percent as percent
from stages.metrics.registered import metric_of
from stages.sample.designs import DENSE
from stages.search.outcome import WINNER

UNEQUAL_RATIO = 0.005  # contenders whose overall ratios differ by more did not do the same job


@dataclass(frozen=True)
class Verdict:
    """`lead` says in everyone's words what came out, `headline` how it stands against the baselines.

    The sentences of `details` and `caveats` support or limit them.
    """

    lead: str
    headline: str
    details: tuple[str, ...]
    caveats: tuple[str, ...]


def verdict(data: ReportData) -> Verdict:
    """Compare the winner with uniform and simple pruning on the report part of every text."""
    ratio = f"At an overall ratio of {percent(data.winner.overall_ratio)}"
    standings = {name: _standing(data, name) for name in PRUNED_BASELINES if data.contender(name)}
    if guessing := _guessing(data):
        headline = f"{ratio} nothing can be said of the winner: {guessing}"
    elif not standings:
        headline = f"{ratio} nothing was measured to compare the winner with."
    else:
        headline = f"{ratio} the winner {_clauses(standings)}.{_advice(data, standings)}"
    details = [s for name in standings for s in _figures(data, name, f"against {name} pruning")]
    details += _cost(data, data.winner, "") + _recovery(data) + alternatives.words(data)[:1]
    return Verdict(_lead(data), headline, tuple(details), tuple(_caveats(data) + _lost(data)))


def _lead(data: ReportData) -> str:
    """What was made of which model, how much smaller and faster it is, and what that costs."""
    found, dense = data.exported, data.shape.total_parameters
    parts = [f"{percent(1 - found.parameters / dense, 0)} smaller"]
    if data.proof.comparisons:
        first = data.proof.comparisons[0]
        speeds = f"{first.prefill_speedup.median:.2f} and {first.decode_speedup.median:.2f}"
        parts.append(f"{speeds} times as fast at reading and at writing ({first.name})")
    costs = _multiples(data, found)
    if costs:
        parts.append(f"perplexity {' and '.join(costs)}")
    name = data.name or data.model
    what = f"{percent(found.overall_ratio, 0)} of its layers' parameters removed"
    trained = ", and trained again" if data.contender(RECOVERED) else ""
    return f"{name}, {what}{trained}: {', '.join(parts)}."


def _guessing(data: ReportData) -> str:
    """Why no comparison means anything: a dense model that foretells its text no better than by guessing."""
    dense, known = data.contender(DENSE), [metric.key for metric in data.decisive]
    worth = [dense.metrics.get(key, math.nan) for key in known] if dense else []
    if not worth or not all(value >= data.shape.vocabulary / 2 for value in worth):
        return ""
    return (
        f"the dense model guesses (perplexity {min(worth):,.0f} among {data.shape.vocabulary:,} tokens). "
        "Are its weights trained, and is its tokenizer its own?"
    )


def _clauses(standings: Mapping[str, str]) -> str:
    """What the winner does to each baseline, in one breath where it does the same to all."""
    first, *others = standings.values()
    if others == [first]:
        return first.format(f"both {' and '.join(standings)} pruning")
    return ", but ".join(clause.format(f"{name} pruning") for name, clause in standings.items())


def _advice(data: ReportData, standings: Mapping[str, str]) -> str:
    """Which baseline to ship if the winner loses to it everywhere although it removes as much."""
    better = [
        name
        for name, clause in standings.items()
        if clause.startswith("loses")
        and (other := data.contender(name)) is not None
        and other.overall_ratio >= data.winner.overall_ratio - UNEQUAL_RATIO
    ]
    if not better:
        return ""
    return f" Ship {' or '.join(better)} pruning instead: it is better, and needs no search."


def signed_percent(change: float) -> str:
    """A relative change in percent: "−8.2 %", "+1.0 %", "0.0 %"."""
    text = f"{change:+.1f}"
    return ("0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")) + " %"


def _standing(data: ReportData, baseline: str) -> str:
    """A clause with a gap for the baseline's name."""
    other = data.contender(baseline)
    if other is not None and other.architecture == data.winner.architecture:
        return "is the same architecture as {}"
    found = {metric.corpus: judge(data, baseline, metric.key) for metric in data.decisive}
    judged = {text: outcome for text, outcome in found.items() if outcome}
    match sorted(set(judged.values())):
        case []:
            return "shares no finite perplexity with {}"
        case ["better"]:
            return "beats {} on every text"
        case ["worse"]:
            return "loses to {} on every text"
        case ["level"]:
            return "is level with {} on every text"
        case ["open"]:
            return "cannot be judged against {}, since one window of text has no error"
        case ["better", "open"] | ["open", "worse"] | ["level", "open"]:
            (told,) = {*judged.values()} - {"open"}
            verb = {"better": "beats {} on", "level": "is level with {} on", "worse": "loses to {} on"}[told]
            judged_on, others = (
                " and ".join(text for text, o in judged.items() if (o == "open") is unknown)
                for unknown in (False, True)
            )
            return f"{verb} {judged_on} ({others} cannot be judged)"
    words = {"better": "beats it on", "level": "is level on", "worse": "loses on", "open": "is not judged on"}
    parts = []
    for outcome, verb in words.items():
        texts = [text for text, o in judged.items() if o == outcome]
        if texts:
            parts.append(f"{verb} {' and '.join(texts)}")
    return "is mixed against {} (" + ", ".join(parts) + ")"


def _figures(data: ReportData, baseline: str, told: str) -> list[str]:
    """The perplexities of a baseline's subject beside its own, in a sentence, if any are known."""
    ours, theirs = data.contender(subject_of(baseline)), data.contender(baseline)
    parts = [
        f"{signed_percent(change)} on {metric.corpus} "
        f"({ours.metrics[metric.key]:.2f} against {theirs.metrics[metric.key]:.2f})"
        for metric in data.decisive
        if ours and theirs and (change := change_percent(data, baseline, metric.key)) is not None
    ]
    return [f"Perplexity {told}: {', '.join(parts)}."] if parts else []


def _cost(data: ReportData, contender: Contender, of_what: str) -> list[str]:
    """A contender's perplexities as multiples of the dense model's."""
    parts = _multiples(data, contender)
    return [f"Perplexity{of_what} against the dense model: {', '.join(parts)}."] if parts else []


def _multiples(data: ReportData, contender: Contender) -> list[str]:
    """A contender's perplexities in those of the dense model, "1.74 times on wikipedia"."""
    dense, parts = data.contender(DENSE), []
    for metric in data.decisive if dense else ():
        ours, theirs = (c.metrics.get(metric.key, math.nan) for c in (contender, dense) if c)
        if theirs and math.isfinite(ours) and math.isfinite(theirs):
            parts.append(f"{ours / theirs:.2f} times on {metric.corpus}")
    return parts


def _recovery(data: ReportData) -> list[str]:
    """What recovery gave back, and how the recovered winner stands against baselines recovered alike."""
    if data.contender(RECOVERED) is None:
        return []
    alike = [(recovered_of(name), f"{name} pruning recovered alike") for name in PRUNED_BASELINES]
    told = [
        sentence
        for baseline, words in ((WINNER, "before it"), *alike)
        for sentence in _figures(data, baseline, f"after recovery, against {words}")
    ]
    return [*told, *_cost(data, data.exported, " of what is exported")]


def _lost(data: ReportData) -> list[str]:
    """The figures that recovery made worse."""
    worse = [metric_of(name).label for name in data.metric_names if judge(data, WINNER, name) == "worse"]
    if data.contender(RECOVERED) is None or not worse:
        return []
    return [f"Recovery made worse: {', '.join(worse)}."]


def _caveats(data: ReportData) -> list[str]:
    caveats = []
    if any(judge(data, name, metric.key) == "open" for name in PRUNED_BASELINES for metric in data.decisive):
        caveats.append(
            "Text of one window has no standard error, and differences on it may be its own: raise "
            "export.measurement.windows (its null is all of the text), or lower its sequence_length."
        )
    for name in PRUNED_BASELINES:
        other = data.contender(name)
        if other is None:
            caveats.append(f"{name.capitalize()} pruning was not measured, so that comparison is missing.")
        elif not data.taken and abs(other.overall_ratio - data.winner.overall_ratio) > UNEQUAL_RATIO:
            caveats.append(
                f"The budgets differ: {name} pruning removes {percent(other.overall_ratio)}, "
                f"the winner {percent(data.winner.overall_ratio)}."
            )
    for c in data.contenders:
        lost = [m.corpus for m in data.decisive if not math.isfinite(c.metrics.get(m.key, 0.0))]
        if lost:
            caveats.append(f"The perplexity of {c.name} is not finite on {', '.join(lost)}.")
    others = " and ".join(name for name in PRUNED_BASELINES if data.contender(name))
    for metric in map(metric_of, data.metric_names):
        if metric.coarse and inseparable(data, metric.key):
            caveats.append(
                f"{metric.title.capitalize()} on {metric.on} does not separate the winner from "
                f"{others} pruning: no difference exceeds twice its standard error."
            )
    return caveats
