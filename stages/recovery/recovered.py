"""What a recovery hands on, without the packages that training takes."""

from __future__ import annotations

from dataclasses import dataclass

from stages.evaluate.network.weights import PrunedWeights
from stages.recovery.curve import Curve


@dataclass(frozen=True)
class Recovered:
    """Weights after a recovery, what was done in a sentence's part, and the course of the training."""

    weights: PrunedWeights
    words: str
    curve: Curve
