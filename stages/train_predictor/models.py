"""The kinds of model that forecast one target from an architecture's features.

| kind | what it is |
| --- | --- |
| ``xgboost`` | gradient-boosted trees (Chen & Guestrin 2016), monotone where the law is: the paper's |
| ``additive`` | the non-negative linear model of `additive` |
| ``additive+xgboost`` | the additive model, and trees on what it leaves over: the interactions |

scikit-learn's histogram trees and Gaussian process are references, which these are compared with: they
are never searched with, since they cannot be saved without a pickle.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.gaussian_process import GaussianProcessRegressor, kernels
from xgboost import XGBRegressor
from xgboost.core import XGBoostError

from stages.files import InputError
from stages.params import TrainPredictor
from stages.train_predictor.additive import Additive, Array

Forecast = Callable[[Array], Array]
"""From features (n, F) to forecasts (n,)."""


@dataclass(frozen=True)
class Model:
    """Forecasts one target: the sum of its additive part and its trees; at least one is there."""

    additive: Additive | None
    trees: XGBRegressor | None

    @classmethod
    def fit(
        cls,
        features: Array,
        target: Array,
        sign: int,
        section: TrainPredictor,
        trusted: NDArray[np.bool_] | None = None,
    ) -> Model:
        """Fit the kind that the section names. `sign` is the law's: +1, -1, or 0 for none.

        `trusted` (F,) are the features that the additive model explains by first.

        Trees alone obey the law. On top of the additive model they may also take damage back, since
        the additive model overstates it where cuts overlap: held to the law they forecast worse.
        """
        additive = None
        if section.model != "xgboost":
            additive = Additive.fit(features, target, sign, section.seed, trusted)
            target = target - additive.forecast(features)
            sign = 0
        if section.model == "additive":
            return cls(additive, None)
        return cls(additive, _trees(section, sign, features.shape[1]).fit(features, target))

    def forecast(self, features: Array) -> Array:
        """Forecasts (n,) for features (n, F)."""
        total = np.zeros(len(features))
        if self.additive is not None:
            total += self.additive.forecast(features)
        if self.trees is not None:
            # inplace_predict spares the DMatrix: a search asks for one row at a time, thousands of times
            total += self.trees.get_booster().inplace_predict(features, validate_features=False)
        return total

    def gains(self, features: Array) -> Array:
        """How much each feature decides, (F,): summing to 1, or all 0 where nothing decides.

        The trees' total gain: how much of the target's squared error (nats², summed over pairs) the
        splits on it removed; and for the additive part the squared deviations that its terms cause
        on the features (n, F) fitted on.
        """
        gains = np.zeros(features.shape[1])
        if self.trees is not None:
            for name, gain in self.trees.get_booster().get_score(importance_type="total_gain").items():
                assert isinstance(gain, float)
                gains[int(name.removeprefix("f"))] += gain
        if self.additive is not None:
            half = len(self.additive.weights) // 2
            caused = features * self.additive.weights[:half] + features**2 * self.additive.weights[half:]
            gains += caused.var(axis=0) * len(features)
        return gains / gains.sum() if gains.sum() > 0 else gains

    def to_bytes(self) -> bytes:
        """All that the forecasts depend on."""
        additive = b"" if self.additive is None else json.dumps(self.additive.to_json()).encode()
        trees = b"" if self.trees is None else bytes(self.trees.get_booster().save_raw("ubj"))
        return additive + trees

    def save(self, path: Path) -> dict[str, Any]:
        """Write the trees to `path` as UBJ; return the rest, to be kept as JSON."""
        if self.trees is not None:
            self.trees.save_model(path)
        return {
            "additive": None if self.additive is None else self.additive.to_json(),
            "trees": None if self.trees is None else path.name,
        }

    @classmethod
    def load(cls, folder: Path, content: Mapping[str, Any]) -> Model:
        """Read what `save` wrote.

        Raises:
            InputError: the file of the trees is missing or damaged.
        """
        additive = None if content["additive"] is None else Additive.from_json(content["additive"])
        if content["trees"] is None:
            return cls(additive, None)
        path = folder / content["trees"]
        trees = XGBRegressor()
        try:
            trees.load_model(path)
            trees.get_booster().set_param("nthread", "1")  # a search asks for one row at a time
        except (XGBoostError, OSError) as error:
            raise InputError(f"{path} cannot be read; run `dvc repro train-predictor`") from error
        return cls(additive, trees)


def _trees(section: TrainPredictor, sign: int, features: int) -> XGBRegressor:
    """Reproducible: one seed, one thread, exact splits."""
    return XGBRegressor(
        n_estimators=section.trees,
        max_depth=section.depth,
        learning_rate=section.learning_rate,
        subsample=section.row_sampling,
        colsample_bytree=section.feature_sampling,
        min_child_weight=section.min_child_weight,
        monotone_constraints=tuple([sign] * features),
        tree_method="exact",
        random_state=section.seed,
        n_jobs=1,
    )


class _Regressor(Protocol):
    def fit(self, x: Array, y: Array) -> Any: ...
    def predict(self, x: Array) -> Array: ...


def histogram_trees(sign: int, features: int, seed: int) -> _Regressor:
    """scikit-learn's own gradient boosting."""
    model: _Regressor = HistGradientBoostingRegressor(
        monotonic_cst=[sign] * features, min_samples_leaf=5, random_state=seed
    )
    return model


def gaussian_process(seed: int) -> _Regressor:
    """A linear and a smooth kernel with noise, fitted by marginal likelihood."""
    kernel = kernels.ConstantKernel(1.0) * kernels.RBF(3.0)
    kernel += kernels.ConstantKernel(0.1) * kernels.DotProduct() + kernels.WhiteKernel(1e-3)
    model: _Regressor = GaussianProcessRegressor(kernel, normalize_y=True, random_state=seed)
    return model
