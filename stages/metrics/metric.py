"""The type of a metric: what it is computed from, which way is better, and how it is written and read.

A metric is written as a key, of a text ``NAME.TEXT`` ("log_ppl.news") and of questions
``QUESTIONS.NAME`` ("mmlu.accuracy", by letter "mmlu.letter.accuracy"): in journals, tables, params and
MLflow. No module outside this folder takes such a key apart or puts one together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

if TYPE_CHECKING:
    from torch import Tensor

QuestionFormat = Literal["likelihood", "letter"]
"""How questions are asked: by the likelihood of each answer's text, or of its letter."""


def asked(corpus: str, style: QuestionFormat) -> str:
    """The name of a question corpus asked in a format.

    >>> asked("mmlu", "likelihood"), asked("mmlu", "letter")
    ('mmlu', 'mmlu.letter')
    """
    return corpus if style == "likelihood" else f"{corpus}.{style}"


def format_of(questions: str) -> QuestionFormat:
    """The format in a name that `asked` wrote; the name of a corpus has no dot."""
    return "letter" if questions.endswith(".letter") else "likelihood"


class Shown(IntEnum):
    """How widely people see a metric: in a place, and in those listed before it."""

    NOWHERE = 0
    REPORT = 1
    """People see it in the final table of report and model card."""
    FRONT = 2
    """People see it in the table of the front as well."""
    VERDICT = 3
    """People see it in the verdict and in what stages print as well: a text's one metric that decides."""


@dataclass(frozen=True)
class TextLikelihoods:
    """What a text's metrics are computed from.

    `log_likelihoods` (windows, tokens) are those of the predicted tokens, nats in float64; `size_bytes`
    is how many bytes of text these tokens are.
    """

    log_likelihoods: Tensor
    size_bytes: int


@dataclass(frozen=True)
class QuestionLikelihoods:
    """What the metrics of questions are computed from.

    `log_likelihoods` (questions, 4) are those of the choices, nats in float64; `answers` (questions,) the
    places of the right ones; `lengths` (questions, 4) the characters of each choice's text.
    """

    log_likelihoods: Tensor
    answers: Tensor
    lengths: Tensor


@dataclass(frozen=True, kw_only=True)
class Metric(ABC):
    """One metric; `of` says of which text or questions.

    Attributes:
        name: how keys name it; without a dot.
        title: what people call it: "perplexity".
        unit: what stands beside every error of it.
        lower_is_better: its direction, which the search's objective and every comparison follow.
        format: a finite value for people.
        law: the sign of its change when a site is cut further, which a predictor may assume; 0 for none.
        is_target: whether a predictor forecasts it.
        bounds: the lowest and the highest value that a table of pairs accepts.
        coarse: whether its samples are so coarse that a few dozen decide nothing. It is then no objective
            of a search, and values within each other's standard errors are not told apart.
        shown: where people see it.
        version: raised by hand with every change of what it computes, so that what was measured before is
            measured again.
        on: the text, or the questions as `asked` names them; empty for a metric of none yet.
    """

    about: ClassVar[Literal["text", "questions"]]

    name: str
    title: str
    unit: str
    lower_is_better: bool
    format: Callable[[float], str]
    law: Literal[-1, 0, 1] = 0
    is_target: bool = True
    bounds: tuple[float, float] = (-1e4, 1e4)
    coarse: bool = False
    shown: Shown = Shown.REPORT
    version: int = 1
    on: str = ""

    def of(self, on: str) -> Self:
        """This metric of a text, or of questions as `asked` names them."""
        return replace(self, on=on)

    @property
    def corpus(self) -> str:
        """The name of the corpus."""
        return self.on

    @property
    @abstractmethod
    def key(self) -> str:
        """How it is written; of a metric of nothing yet, its name."""

    @abstractmethod
    def read(self, key: str) -> Self | None:
        """This metric of what the key says; None if the key is another metric's."""

    @abstractmethod
    def score(self, found: Any) -> tuple[float, list[float]]:
        """Its value, and the samples that it is the mean of; none if they are another metric's.

        `found` is `TextLikelihoods` or `QuestionLikelihoods`.
        """

    @property
    def label(self) -> str:
        """Its name in tables: "perplexity, news"."""
        return f"{self.title}, {self.corpus}"

    @property
    def sampled(self) -> Metric:
        """The metric whose samples its standard error rests on."""
        return self

    def slope(self, metrics: Mapping[str, float]) -> float:
        """How much it rises, in an architecture's `metrics`, as the mean of the samples does by one."""
        return 1.0

    def forecast(self, forecasts: Mapping[str, float]) -> float | None:
        """Its value by the `forecasts` of targets; None if it does not follow from them."""
        return forecasts.get(self.key)

    def cost(self, value: Any) -> Any:
        """A value, or an array of them, with the sign by which lower is better."""
        return value if self.lower_is_better else -value


@dataclass(frozen=True, kw_only=True)
class _OfText(Metric):
    about = "text"

    @property
    def key(self) -> str:
        return f"{self.name}.{self.on}" if self.on else self.name

    def read(self, key: str) -> Self | None:
        name, _, text = key.partition(".")
        return self.of(text) if name == self.name and text else None


@dataclass(frozen=True, kw_only=True)
class TextMetric(_OfText):
    """The mean over windows of a text; `samples` gives each window's value (windows,)."""

    samples: Callable[[TextLikelihoods], Tensor]

    def score(self, found: TextLikelihoods) -> tuple[float, list[float]]:
        values = self.samples(found).double()
        return float(values.mean()), values.tolist()


@dataclass(frozen=True, kw_only=True)
class RescaledMetric(_OfText):
    """Another text metric on a scale that people read; no target, since its forecast follows from that one's.

    Attributes:
        base: the metric that it follows from.
        rescaled: its value from the base's and what that was computed from.
        steepness: its derivative by the base's value, from its own value and the base's.
        forecast_of: its forecast from the base's; None where the base's alone does not decide it.
    """

    base: TextMetric
    rescaled: Callable[[float, TextLikelihoods], float]
    steepness: Callable[[float, float], float]
    forecast_of: Callable[[float], float] | None = None
    is_target: bool = False

    @property
    def sampled(self) -> Metric:
        return self.base.of(self.on)

    def score(self, found: TextLikelihoods) -> tuple[float, list[float]]:
        return self.rescaled(self.base.score(found)[0], found), []

    def slope(self, metrics: Mapping[str, float]) -> float:
        return self.steepness(metrics[self.key], metrics[self.sampled.key])

    def forecast(self, forecasts: Mapping[str, float]) -> float | None:
        base = self.sampled.forecast(forecasts)
        return None if base is None or self.forecast_of is None else self.forecast_of(base)


@dataclass(frozen=True, kw_only=True)
class QuestionMetric(Metric):
    """The mean over questions; `samples` gives each question's value (questions,).

    `title_by_letter` is what people call it where answers are given by letter, if not the title "by letter";
    `styles` are the formats in which it says anything of its own.
    """

    about = "questions"

    samples: Callable[[QuestionLikelihoods], Tensor]
    title_by_letter: str = ""
    styles: Collection[QuestionFormat] = ("likelihood", "letter")

    @property
    def corpus(self) -> str:
        return self.on.removesuffix(f".{self.style}")

    @property
    def style(self) -> QuestionFormat:
        """The format in which the questions are asked."""
        return format_of(self.on)

    @property
    def key(self) -> str:
        return f"{self.on}.{self.name}" if self.on else self.name

    def read(self, key: str) -> Self | None:
        questions, _, name = key.rpartition(".")
        ours = name == self.name and questions and format_of(questions) in self.styles
        return self.of(questions) if ours else None

    @property
    def label(self) -> str:
        by_letter = self.title_by_letter or f"{self.title} by letter"
        return f"{by_letter if self.style == 'letter' else self.title}, {self.corpus}"

    def score(self, found: QuestionLikelihoods) -> tuple[float, list[float]]:
        values = self.samples(found).double()
        return float(values.mean()), values.tolist()
