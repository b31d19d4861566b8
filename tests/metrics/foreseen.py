"""An extension: the share of a text's tokens that the model gives a probability above one half."""

import math

from stages.config.choices import METRICS
from stages.metrics.formats import percent
from stages.metrics.metric import TextMetric

FORESEEN = TextMetric(
    name="foreseen",
    title="tokens foreseen",
    unit="share of tokens",
    lower_is_better=False,
    law=-1,
    bounds=(0.0, 1.0),
    format=percent,
    samples=lambda text: (text.log_likelihoods > math.log(0.5)).double().mean(1),
)
METRICS.add("foreseen", FORESEEN)
