"""The kinds of model that forecast one target from an architecture's features.

| kind | what it is |
| --- | --- |
| ``xgboost`` | gradient-boosted trees (Chen & Guestrin 2016), monotone where the law is: the paper's |
| ``additive`` | the non-negative linear model of `additive` |
| ``additive+xgboost`` | the additive model, and trees on what it leaves over: the interactions |
| ``curves`` | the damage curves corrected by the pairs: the Gaussian process of `curves` |
| ``curves+xgboost`` | the same, and trees on what each pair's forecast by the others leaves over |

scikit-learn's histogram trees and Gaussian process are references, which these are compared with: they
are never searched with, since they cannot be saved without a pickle.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.gaussian_process import GaussianProcessRegressor, kernels
from xgboost import DMatrix, XGBRegressor
from xgboost.core import XGBoostError

from stages.build_dataset.features import is_of_site, is_trusted
from stages.config.params import TrainPredictor
from stages.config.predictors import PREDICTORS
from stages.files import InputError, atomically
from stages.train_predictor.additive import Additive, Array
from stages.train_predictor.curves import AnyCurves, Curves

Forecast = Callable[[Array], Array]
"""A function from features (n, F) to forecasts (n,)."""


@dataclass(frozen=True)
class Roles:
    """Which features (F,) a model uses for what."""

    trusted: NDArray[np.bool_]
    """Features that the additive model explains by first."""
    damages: NDArray[np.intp]
    """Places of the sites' own damages, which the curves alone are fitted on."""

    @classmethod
    def of(cls, names: Sequence[str]) -> Roles:
        places = [place for place, name in enumerate(names) if is_of_site(name)]
        return cls(np.array([is_trusted(name) for name in names]), np.array(places, dtype=np.intp))

    @property
    def plain(self) -> NDArray[np.intp]:
        """Places of all other features."""
        return np.setdiff1d(np.arange(len(self.trusted)), self.damages)


@dataclass(frozen=True)
class TargetModel:
    """Forecasts one target: the sum of its parts; at least one is there."""

    additive: Additive | None
    curves: AnyCurves | None
    trees: XGBRegressor | None
    roles: Roles

    @classmethod
    def fit(
        cls,
        features: Array,
        target: Array,
        sign: int,
        section: TrainPredictor,
        roles: Roles | None = None,
        fit_curves: Callable[[Array, Array], tuple[AnyCurves, Array]] = Curves.fit,
    ) -> TargetModel:
        """Fit the kind that the section names. `sign` is the law's: +1, -1, or 0 for none.

        Trees alone obey the law. On top of another model they may also take damage back, since
        that model overstates it where cuts overlap: held to the law they forecast worse.

        Raises:
            InputError: the kind needs damage curves, and the features have none.
        """
        kind = PREDICTORS[section.model]
        roles = roles or Roles.of([""] * features.shape[1])
        plain = features[:, roles.plain]
        additive = curves = None
        if kind.additive:
            additive = Additive.fit(plain, target, sign, section.seed, roles.trusted[roles.plain])
            target, sign = target - additive.forecast(plain), 0
        if kind.curves:
            if not len(roles.damages):
                raise InputError(
                    f"train_predictor.model is {section.model}, but no damage curves are known; set "
                    "evaluate.curvature_tokens or sample.single_site_ratios, or take additive+xgboost"
                )
            curves, target = fit_curves(features[:, roles.damages], target)
            sign = 0
        if not kind.trees:
            return cls(additive, curves, None, roles)
        trees = _trees(section, sign, plain.shape[1]).fit(plain, target)
        return cls(additive, curves, trees, roles)

    def forecast(self, features: Array) -> Array:
        """Forecasts (n,) for features (n, F)."""
        total = np.zeros(len(features))
        plain = features[:, self.roles.plain]
        if self.additive is not None:
            total += self.additive.forecast(plain)
        if self.curves is not None:
            total += self.curves.forecast(features[:, self.roles.damages])
        if self.trees is not None:
            # inplace_predict spares the DMatrix: a search asks for one row at a time, thousands of times
            total += self.trees.get_booster().inplace_predict(plain, validate_features=False)
        return total

    def gains(self, features: Array) -> Array:
        """How much each feature decides, (F,): summing to 1, or all 0 where nothing decides.

        The trees' total gain: how much of the target's squared error (nats², summed over pairs) the
        splits on it removed; and for the other parts the squared deviations that its terms cause
        on the features (n, F) fitted on.
        """
        gains, plain = np.zeros(features.shape[1]), self.roles.plain
        if self.trees is not None:
            for name, gain in self.trees.get_booster().get_score(importance_type="total_gain").items():
                assert isinstance(gain, float)
                gains[plain[int(name.removeprefix("f"))]] += gain
        if self.additive is not None:
            half, known = len(self.additive.weights) // 2, features[:, plain]
            caused = known * self.additive.weights[:half] + known**2 * self.additive.weights[half:]
            gains[plain] += caused.var(axis=0) * len(features)
        if self.curves is not None:
            caused = self.curves.by_site(features[:, self.roles.damages])
            gains[self.roles.damages] += caused.var(axis=0) * len(features)
        return gains / gains.sum() if gains.sum() > 0 else gains

    def contributions(self, features: Array) -> dict[str, Array]:
        """What each feature adds to the forecasts, (n, F), by the part that says so.

        "curve" is of the damage curves as they were expected, "pairs" what the pairs corrected of them, and
        "trees" of trees (their SHAP values) and additive model. Over all parts and features they add up to
        the forecasts, but for a constant.
        """
        plain, damages = self.roles.plain, features[:, self.roles.damages]
        parts = {name: np.zeros(features.shape) for name in ("curve", "pairs", "trees")}
        if self.curves is not None:
            expected = self.curves.slope * damages
            parts["curve"][:, self.roles.damages] = expected
            parts["pairs"][:, self.roles.damages] = self.curves.by_site(damages) - expected
        if self.additive is not None:
            half, known = len(self.additive.weights) // 2, features[:, plain]
            terms = known * self.additive.weights[:half] + known**2 * self.additive.weights[half:]
            parts["trees"][:, plain] += terms
        if self.trees is not None:
            values = self.trees.get_booster().predict(DMatrix(features[:, plain]), pred_contribs=True)
            parts["trees"][:, plain] += values[:, :-1]
        return parts

    def to_bytes(self) -> bytes:
        """Everything that the forecasts depend on, as bytes."""
        parts = [None if part is None else part.to_json() for part in (self.additive, self.curves)]
        additive = json.dumps(parts).encode()
        trees = b"" if self.trees is None else bytes(self.trees.get_booster().save_raw("ubj"))
        return additive + trees

    def save(self, path: Path) -> dict[str, Any]:
        """Write the trees to `path` as UBJ; return the rest, to be kept as JSON."""
        if self.trees is not None:
            with atomically(path) as temporary:
                temporary.write_bytes(self.trees.get_booster().save_raw("ubj"))
        return {
            "additive": None if self.additive is None else self.additive.to_json(),
            "curves": None if self.curves is None else self.curves.to_json(),
            "trees": None if self.trees is None else path.name,
        }

    @classmethod
    def load(cls, folder: Path, content: Mapping[str, Any], roles: Roles) -> TargetModel:
        """Read what `save` wrote.

        Raises:
            InputError: the file of the trees is missing or damaged.
        """
        additive = None if content["additive"] is None else Additive.from_json(content["additive"])
        curves = None if content["curves"] is None else Curves.from_json(content["curves"])
        if content["trees"] is None:
            return cls(additive, curves, None, roles)
        path = folder / content["trees"]
        trees = XGBRegressor()
        try:
            trees.load_model(bytearray(path.read_bytes()))
            trees.get_booster().set_param("nthread", "1")  # a search asks for one row at a time
        except (XGBoostError, OSError, ValueError) as error:  # ValueError: its own message is no UTF-8
            raise InputError(f"{path} cannot be read; run `dvc repro train-predictor`") from error
        return cls(additive, curves, trees, roles)


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
