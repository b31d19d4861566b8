"""What a recovery hands on, without the packages that training takes."""

from __future__ import annotations

from dataclasses import dataclass

from stages.evaluate.network.weights import PrunedWeights


@dataclass(frozen=True)
class Recovered:
    """Weights after a recovery, and what was done in a sentence's part."""

    weights: PrunedWeights
    words: str
