"""Accuracy on questions: how many are answered right, the likeliest choice being the answer.

By the sum of a choice's log-likelihoods (lm-eval's ``acc``), where a long answer is unlikely for its length,
and by that sum a character of it (``acc_norm``). A letter is a character long: there both are the same.
"""

from __future__ import annotations

from dataclasses import replace

from stages.metrics.formats import percent
from stages.metrics.metric import QuestionFormat, QuestionMetric, Shown

ACCURACY = QuestionMetric(
    name="accuracy",
    title="accuracy",
    unit="accuracy, 0 to 1",
    lower_is_better=False,
    format=percent,
    bounds=(0.0, 1.0),
    coarse=True,
    shown=Shown.FRONT,
    samples=lambda questions: (questions.log_likelihoods.argmax(1) == questions.answers).double(),
)
"""Its samples are 0 or 1: too coarse for a law to show in those of a few dozen questions."""
_OF_TEXTS: tuple[QuestionFormat, ...] = ("likelihood",)
ACCURACY_NORM = replace(
    ACCURACY,
    name="accuracy_norm",
    title="accuracy normalised by length",
    is_target=False,  # as coarse as the other, and right where that is: no forecast of its own
    shown=Shown.REPORT,
    styles=_OF_TEXTS,
    samples=lambda questions: (
        (questions.log_likelihoods / questions.lengths).argmax(1) == questions.answers
    ).double(),
)
