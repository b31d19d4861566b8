"""Log-likelihood of the right answer of questions, which is smooth where accuracy is coarse."""

from __future__ import annotations

from stages.metrics.metric import QuestionMetric

LOG_LIKELIHOOD = QuestionMetric(
    name="log_likelihood",
    title="log-likelihood of the right answer",
    title_by_letter="log-likelihood of the right letter",
    unit="nats a question",
    lower_is_better=False,
    format=lambda nats: f"{nats:.3f}".replace("-", "−"),
    law=-1,
    bounds=(-1e4, 0.0),
    samples=lambda questions: questions.log_likelihoods.gather(1, questions.answers[:, None]).flatten(),
)
