"""The kinds of predictor that `train_predictor.model` names, and the parts that each is the sum of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

PredictorName = Literal["curves+xgboost", "curves", "additive+xgboost", "xgboost", "additive"]


@dataclass(frozen=True)
class PredictorKind:
    """Which parts forecast one after the other, each what those before leave over.

    `without_curves` is the kind to take where no damage curves are known.
    """

    curves: bool = False
    additive: bool = False
    trees: bool = False
    without_curves: PredictorName | None = None


PREDICTORS: Mapping[PredictorName, PredictorKind] = {
    "curves+xgboost": PredictorKind(curves=True, trees=True, without_curves="additive+xgboost"),
    "curves": PredictorKind(curves=True, without_curves="additive"),
    "additive+xgboost": PredictorKind(additive=True, trees=True),
    "xgboost": PredictorKind(trees=True),
    "additive": PredictorKind(additive=True),
}
