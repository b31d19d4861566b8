"""Accuracy on questions: how many are answered right, the likeliest choice being the answer."""

from __future__ import annotations

from stages.metrics.formats import percent
from stages.metrics.metric import QuestionMetric, Shown

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
