"""Perplexity of a text, on the two scales that it is written on."""

from __future__ import annotations

import math

from stages.metrics.metric import RescaledMetric, Shown, TextMetric


def perplexity(nats: float) -> float:
    """The perplexity of so many nats a token; infinite where a float holds no more."""
    return math.exp(nats) if nats < _MOST_NATS else math.inf


_MOST_NATS = 709.0

LOG_PPL = TextMetric(
    name="log_ppl",
    title="log perplexity",
    unit="log PPL, nats a token",
    lower_is_better=True,
    format=lambda nats: f"{nats:.4f}",
    law=1,
    bounds=(0.0, 50.0),
    shown=Shown.NOWHERE,  # people read the other scale
    samples=lambda text: -text.log_likelihoods.mean(1),
)
"""The mean negative log-likelihood of a window's predicted tokens, nats a token: what is forecast."""

PPL = RescaledMetric(
    name="ppl",
    title="perplexity",
    unit="perplexity",
    lower_is_better=True,
    format=lambda ppl: f"{ppl:,.2f}" if ppl < 1e6 else f"{ppl:.2e}",
    law=1,
    shown=Shown.VERDICT,
    base=LOG_PPL,
    rescaled=lambda nats, _: perplexity(nats),
    steepness=lambda ppl, _: ppl,
    forecast_of=perplexity,
)
