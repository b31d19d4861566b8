"""The final table as values: what each contender measured on the report part, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stages.architecture import Architecture
from stages.recovery.curve import Curve
from stages.sample.designs import DENSE, SIMPLE, UNIFORM
from stages.search.outcome import WINNER

PRUNED_BASELINES = (UNIFORM, SIMPLE)
RECOVERED = "recovered"
"""The winner after its recovery, which is then what is exported."""


def recovered_of(name: str) -> str:
    """What a contender is called after its recovery."""
    return RECOVERED if name == WINNER else f"{name}, {RECOVERED}"


def subject_of(baseline: str) -> str:
    """Who is compared with a baseline: what was recovered with what was, or with itself before it."""
    return RECOVERED if baseline in (WINNER, *map(recovered_of, PRUNED_BASELINES)) else WINNER


@dataclass(frozen=True)
class Contender:
    """A row of the final table, measured on the report part.

    `name` is "dense", "uniform", "simple", "winner" or that of one after its recovery. `metrics` is by key
    (`stages.metrics`); `standard_errors` has the same keys where they are known, in the metric's own unit.
    `parameters` counts everything, embeddings included.
    """

    name: str
    architecture: Architecture
    overall_ratio: float
    parameters: int
    metrics: Mapping[str, float]
    standard_errors: Mapping[str, float]


@dataclass(frozen=True)
class QuestionGroup:
    """Accuracies on the questions of one MMLU subject, or of one category of subjects.

    `metric` is the accuracy's key, `kind` "subject" or "category";
    `accuracy` and `standard_errors` are by contender.
    """

    metric: str
    kind: str
    name: str
    questions: int
    accuracy: Mapping[str, float]
    standard_errors: Mapping[str, float]


@dataclass(frozen=True)
class Taken:
    """What contenders take of one thing that the budget limits, "size_bytes", "prefill_ms" or "decode_ms".

    `forecast` and `measured` are by contender; `measured` has those that were.
    """

    name: str
    most: float
    forecast: Mapping[str, float]
    measured: Mapping[str, float]

    @property
    def error_percent(self) -> float:
        """How far the winner's forecast lies above what was measured."""
        return 100 * (self.forecast[WINNER] / self.measured[WINNER] - 1)

    @property
    def share_error_percent(self) -> float | None:
        """How far the forecast of the winner's share of the dense model lies above what both took in turn.

        What the machine has become slower or faster by since the table was measured cancels out.
        """
        if DENSE not in self.measured:
            return None
        forecast, measured = (values[WINNER] / values[DENSE] for values in (self.forecast, self.measured))
        return 100 * (forecast / measured - 1)


@dataclass(frozen=True)
class SearchStep:
    """What the search would have ended with at one of its steps (`stages.search.outcome.Step`).

    `objective` is of the selection part. `metrics` are perplexities of the report part, by key, of the
    architecture as the pairs are measured: cut and repaired once. `change_percent` is relative to the first
    step, empty for that itself, and `change_errors` has its standard errors in percentage points, from
    differences paired window by window, where they are known.
    """

    name: str
    architecture: str
    evaluations: int
    objective: float
    metrics: Mapping[str, float]
    change_percent: Mapping[str, float]
    change_errors: Mapping[str, float]


@dataclass(frozen=True)
class Alternative:
    """Dense or exported model with its weights rounded to a type of llama.cpp's.

    `model` is a contender's name; `metrics` are perplexities of the report part by key, on few windows, with
    their `standard_errors`. `size_bytes` is what the weights take in a GGUF file.
    """

    model: str
    type: str
    size_bytes: int
    metrics: Mapping[str, float]
    standard_errors: Mapping[str, float]


@dataclass(frozen=True)
class Answers:
    """What models say to the same prompts, greedily, and how far they are from the dense model.

    `texts` has an answer a prompt by contender. `divergence` is the mean Kullback-Leibler divergence of the
    dense model's predictions from a contender's, in nats a token, by contender and text of the report part or
    conversations, with `divergence_errors` where they are known. `words` say how they were asked.
    """

    prompts: Sequence[str]
    texts: Mapping[str, Sequence[str]]
    divergence: Mapping[str, Mapping[str, float]]
    divergence_errors: Mapping[str, Mapping[str, float]]
    words: str


@dataclass(frozen=True)
class FinalTable:
    """All contenders, and how they were measured.

    Attributes:
        change_errors: by baseline the standard error of the relative change of its subject, the winner's for
            most, metric by metric in percentage points, from differences paired over the same windows or
            questions.
        taken: an entry a limit of the budget in bytes or milliseconds.
        protocol: how every figure of the pipeline was measured, in words: lines of a label and a sentence.
        protocol_entries: how the final table was, corpus by corpus (`Selection.protocol`).
        words: the same in a sentence a corpus (`Selection.words`).
        rows: the keys of the contenders' rows in the journal, by contender.
        curves: the course of each training, by the contender that it made.
        steps: what the search bought from step to step.
        alternatives: dense and exported model in other types of weights.
        answers: what dense and pruned models say.
    """

    contenders: Sequence[Contender]
    change_errors: Mapping[str, Mapping[str, float]]
    question_groups: Sequence[QuestionGroup]
    taken: Sequence[Taken]
    protocol: Sequence[tuple[str, str]]
    protocol_entries: Sequence[Mapping[str, Any]]
    words: Mapping[str, str]
    rows: Mapping[str, str]
    curves: Mapping[str, Curve] = field(default_factory=dict)
    steps: Sequence[SearchStep] = ()
    alternatives: Sequence[Alternative] = ()
    answers: Answers | None = None
