"""What a search minimises."""

from __future__ import annotations

from collections.abc import Mapping

from stages.metrics.registered import metric_of


def objective_of(values: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The weighted mean of targets, lower is better: nats a token for log PPLs.

    A target whose metric should be high, as a log-likelihood, counts negatively.
    """
    total = sum(weight * metric_of(target).cost(values[target]) for target, weight in weights.items())
    return float(total / sum(weights.values()))
