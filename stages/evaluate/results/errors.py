"""Standard errors of what is measured as a mean of samples."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from stages.evaluate.results.journal import Row
from stages.metrics.registered import metric_of


def metric_errors(row: Row, keys: Iterable[str]) -> dict[str, float]:
    """Standard errors of a row's metrics; on another scale than its samples, their error is scaled."""
    return {
        key: metric.slope(row.metrics) * standard_error(row.samples[metric.sampled.key])
        for key, metric in ((key, metric_of(key)) for key in keys)
    }


def standard_error(samples: Sequence[float]) -> float:
    """The standard error of the mean of independent samples; NaN for fewer than two."""
    n = len(samples)
    if n < 2:
        return math.nan
    return statistics.stdev(samples) / math.sqrt(n)
