"""A run against the baseline, paired on the same tokens and questions: noise or regression.

How hard a window or a question is cancels out of the difference of two measurements of it, so that the
standard error of the mean difference says what another text of the kind could have shown instead.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from stages.evaluate.results.errors import standard_error
from stages.files import InputError
from stages.metrics.accuracy import ACCURACY
from stages.metrics.log_likelihood import LOG_LIKELIHOOD
from stages.metrics.perplexity import LOG_PPL, PPL
from stages.metrics.registered import by_corpus, metric_of
from stages.search.outcome import WINNER
from tests.regression.baseline import Contender, Run
from tests.regression.settings import Settings, Tolerance

ALL_TEXTS = LOG_PPL.of("*").key


class Verdict(StrEnum):
    SAME = "same"  # within the tolerance
    NOISE = "noise"  # beyond it, but within the standard errors
    BETTER = "better"
    REGRESSION = "REGRESSION"


@dataclass(frozen=True)
class Comparison:
    """One figure of one contender, in units that people read.

    `change`, `error` (the paired standard error of the change) and `tolerance` are in `unit`: % of a
    perplexity, points of accuracy, nats a question, or a metric's own, which is then empty.
    """

    contender: str
    metric: str
    baseline: float
    now: float
    change: float
    error: float
    tolerance: float
    unit: str
    verdict: Verdict


def compare(baseline: Run, now: Run, settings: Settings) -> list[Comparison]:
    """Every figure of every contender that both runs measured.

    Raises:
        InputError: the runs are not comparable (`differences`).
    """
    require_comparable(baseline, now)
    rows = []
    for name, contender in now.contenders.items():
        tolerance = settings.tolerance.found if name == WINNER else settings.tolerance.fixed
        before, after = _with_all_texts(baseline.contenders[name]), _with_all_texts(contender)
        for metric, samples in after.items():
            rows.append(_compared(name, metric, before[metric], samples, tolerance, settings.standard_errors))
    return rows


def _with_all_texts(contender: Contender) -> dict[str, Sequence[float]]:
    """The samples, and those of all texts together: their mean is the perplexities' geometric mean, logged.

    It is what a search is to lower; winners as good as each other trade one text for another.
    """
    samples = contender.samples
    texts = list(by_corpus(samples, LOG_PPL).values())
    return (
        {**samples, ALL_TEXTS: [value for values in texts for value in values]}
        if len(texts) > 1
        else {**samples}
    )


def require_comparable(baseline: Run, now: Run) -> None:
    """Raise InputError, with every reason and what to do, if the runs are not comparable (`differences`)."""
    found = differences(baseline, now)
    if found:
        lines = "\n".join(f"  {line}" for line in found)
        raise InputError(
            f"this run and the baseline measure different things:\n{lines}\nIf that is meant, run `make "
            "regression-update` and commit the new baseline with the change that caused it"
        )


def differences(baseline: Run, now: Run) -> list[str]:
    """Why the runs cannot be compared, a line each; empty if they can.

    The texts, the questions, the protocol and the architectures that are given must be the same. A
    contender that only the baseline has is none of it (`now` broke off, which is told elsewhere), nor is
    one without samples (`now` has yet to measure it).
    """
    lines = []
    if baseline.model != now.model:
        lines.append(f"model: {baseline.model} in the baseline, {now.model} now")
    lines += _changes("protocol of ", _by_corpus(baseline.protocol), _by_corpus(now.protocol))
    lines += _changes("tokens of ", baseline.fingerprints, now.fingerprints)
    for name, contender in now.contenders.items():
        before = baseline.contenders.get(name)
        if before is None:
            lines.append(f"contender {name}: not in the baseline")
        elif name != WINNER and before.architecture != contender.architecture:
            ids = f"{before.architecture.id} in the baseline, {contender.architecture.id} now"
            lines.append(f"architecture {name}: {ids}; its widths are decided by the code and the budget")
        elif contender.samples and _sizes(before) != _sizes(contender) and not lines:
            lines.append(f"samples of {name}: {_sizes(before)} in the baseline, {_sizes(contender)} now")
    return lines


def notes(baseline: Run, now: Run) -> list[str]:
    """What else is not as it was for the baseline, a line each: it may explain a change."""
    lines = [] if baseline.weights == now.weights else [f"weights: {baseline.weights}, now {now.weights}"]
    return [
        *lines,
        *_changes("package ", baseline.packages, now.packages),
        *_changes("params ", baseline.params, now.params),
    ]


def _by_corpus(protocol: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Flat: ``wikipedia windows`` to its value, so that a difference names what differs."""
    return {f"{e['corpus']}: {key}": value for e in protocol for key, value in e.items() if key != "corpus"}


def _changes(prefix: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    keys = [*before, *(key for key in now if key not in before)]
    missing = "absent"
    return [
        f"{prefix}{key}: {before.get(key, missing)!s} in the baseline, {now.get(key, missing)!s} now"
        for key in keys
        if before.get(key, missing) != now.get(key, missing)
    ]


def _sizes(contender: Contender) -> dict[str, int]:
    return {metric: len(samples) for metric, samples in contender.samples.items()}


def _compared(
    name: str,
    key: str,
    before: Sequence[float],
    now: Sequence[float],
    tolerance: Tolerance,
    standard_errors: float,
) -> Comparison:
    paired = [b - a for a, b in zip(before, now, strict=True)]
    mean, error = statistics.fmean(paired), standard_error(paired)
    old, new = statistics.fmean(before), statistics.fmean(now)
    metric = metric_of(key)
    worse = metric.cost(mean)
    if metric.name == LOG_PPL.name:
        allowed = tolerance.all_ppl_percent if key == ALL_TEXTS else tolerance.ppl_percent
        verdict = judge(worse, error, math.log1p(allowed / 100), standard_errors)
        percent = 100 * math.exp(mean)
        values = (math.exp(old), math.exp(new), percent - 100, percent * error, allowed)
        return Comparison(name, PPL.of(metric.on).key, *values, "%", verdict)
    if metric.name == ACCURACY.name:
        verdict = judge(worse, error, tolerance.accuracy_points / 100, standard_errors)
        values = (100 * old, 100 * new, 100 * mean, 100 * error, tolerance.accuracy_points)
        return Comparison(name, key, *values, "points", verdict)
    # A metric of an extension has no tolerance of its own: it may be worse by no more than noise.
    allowed, unit = 0.0, ""
    if metric.name == LOG_LIKELIHOOD.name:
        allowed, unit = tolerance.log_likelihood_nats, "nats"
    verdict = judge(worse, error, allowed, standard_errors)
    return Comparison(name, key, old, new, mean, error, allowed, unit, verdict)


def judge(worse: float, error: float, tolerance: float, standard_errors: float) -> Verdict:
    """The verdict on a figure that is `worse` (negative: better) by so much, all in one unit.

    Raises:
        ValueError: the standard error is not known; the difference of one sample has none.
    """
    if not error >= 0:
        raise ValueError(f"the standard error is {error}; expected at least two samples to pair")
    if abs(worse) <= tolerance:
        return Verdict.SAME
    if abs(worse) <= standard_errors * error:
        return Verdict.NOISE
    return Verdict.REGRESSION if worse > 0 else Verdict.BETTER
