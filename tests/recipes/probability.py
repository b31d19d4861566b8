"""An extension: how probable a text's next token is to the model, on average."""

from stages.config.choices import METRICS
from stages.metrics.formats import percent
from stages.metrics.metric import TextMetric

PROBABILITY = TextMetric(
    name="probability",
    title="probability of the next token",
    unit="mean probability",
    lower_is_better=False,
    law=-1,
    bounds=(0.0, 1.0),
    format=percent,
    samples=lambda text: text.log_likelihoods.exp().mean(1),
)
METRICS.add("probability", PROBABILITY)
