"""Standard errors of what is measured as a mean of samples."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def standard_error(samples: Sequence[float]) -> float:
    """The standard error of the mean of independent samples; NaN for fewer than two."""
    n = len(samples)
    if n < 2:
        return math.nan
    return statistics.stdev(samples) / math.sqrt(n)
