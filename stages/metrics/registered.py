"""The metrics that there are, ours and those of extensions, by key and by what they are measured on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TypeVar

from stages.config.choices import METRICS
from stages.metrics.metric import Metric, QuestionFormat, QuestionMetric, Shown, asked, format_of

Value = TypeVar("Value")


def of_text(text: str) -> list[Metric]:
    """Every metric of a text."""
    return [metric.of(text) for metric in _registered() if metric.about == "text"]


def of_questions(questions: str) -> list[Metric]:
    """Every metric of questions, as `asked` names them, in their format."""
    every = [metric for metric in _registered() if isinstance(metric, QuestionMetric)]
    return [metric.of(questions) for metric in every if format_of(questions) in metric.styles]


def _registered() -> list[Metric]:
    return [METRICS[name] for name in METRICS.names]


@cache
def metric_of(key: str) -> Metric:
    """The metric that a key names.

    >>> metric = metric_of("mmlu.letter.accuracy")
    >>> metric.label, metric.format(0.2862), metric.lower_is_better
    ('accuracy by letter, mmlu', '28.6 %', False)

    Raises:
        ValueError: there is none.
    """
    for metric in _registered():
        found = metric.read(key)
        if found is not None:
            return found
    raise ValueError(
        f"no metric is called {key!r}; expected NAME.TEXT or QUESTIONS.NAME, with one of the names "
        f"{', '.join(METRICS.names)}"
    )


def score(metrics: Iterable[Metric], found: object) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Values and samples by key of `metrics`, computed from what was `found` of their text or questions."""
    values, samples = {}, {}
    for metric in metrics:
        values[metric.key], of_metric = metric.score(found)
        if of_metric:
            samples[metric.key] = of_metric
    return values, samples


def targets(
    texts: Sequence[str], questions: Sequence[str], formats: Sequence[QuestionFormat]
) -> list[Metric]:
    """What predictors forecast, corpus by corpus; of one corpus, what has a law first.

    `formats` are those in which the pairs' questions were asked.
    """
    measured = [of_text(text) for text in texts]
    measured += [of_questions(asked(corpus, style)) for corpus in questions for style in formats]
    return [m for group in measured for m in sorted(group, key=lambda m: m.law == 0) if m.is_target]


def shown(values: Mapping[str, Value], least: Shown) -> dict[str, Value]:
    """The values by key of those metrics that people see in a place, or in more than that."""
    return {key: value for key, value in values.items() if metric_of(key).shown >= least}


def by_corpus(values: Mapping[str, Value], metric: Metric) -> dict[str, Value]:
    """The values of one metric, by what it is measured on; other keys may be anything.

    >>> by_corpus({"ppl.news": 26.43, "ppl.wikipedia": 20.65, "mmlu.accuracy": 0.25}, METRICS["ppl"])
    {'news': 26.43, 'wikipedia': 20.65}
    """
    found = {key: metric.read(key) for key in values}
    return {m.on: values[key] for key, m in found.items() if m is not None}
