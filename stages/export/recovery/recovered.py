"""What a recovery hands on: weights, and how they came about. Without the packages that training takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stages.evaluate.network.weights import PrunedWeights
from stages.tracking.records import Numbers


@dataclass(frozen=True)
class Recovered:
    """Weights after a recovery, and how it went."""

    weights: PrunedWeights
    words: str
    """What was done, in a sentence's part."""
    curve: Sequence[Numbers]
    """Logged figures, each with the "tokens" after which it was."""
