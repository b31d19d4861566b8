"""The accuracy predictor: gradient-boosted trees from an architecture's features to each target.

One model a target, so that each can carry its own monotone constraint (multi-output trees take
none). The law: cutting any site further cannot lower a perplexity nor raise the likelihood of a
right answer, on average; MMLU accuracy is too coarse for it and is left free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from xgboost import XGBRegressor
from xgboost.core import XGBoostError

from stages.build_dataset.features import Array, Features
from stages.files import InputError, read_json, write_json
from stages.params import TrainPredictor

SCHEMA, VERSION = "prunecast.predictor", 1


def law(target: str) -> int:
    """The sign of a target's change when a site is cut further: +1, -1, or 0 for none."""
    if target.startswith("log_ppl."):
        return 1
    return -1 if target.endswith(".log_likelihood") else 0


def scale(target: str) -> str:
    """The unit of a target, to be printed beside every error of it."""
    if target.startswith("log_ppl."):
        return "log PPL, nats a token"
    return "nats a question" if target.endswith(".log_likelihood") else "accuracy, 0 to 1"


@dataclass(frozen=True)
class Predictor:
    """Forecasts every target from features (n, len(features))."""

    features: Sequence[str]
    models: Mapping[str, XGBRegressor]

    @classmethod
    def fit(
        cls, pairs: pd.DataFrame, features: Sequence[str], targets: Sequence[str], section: TrainPredictor
    ) -> Predictor:
        """Fit one model a target on the rows of `pairs`. Reproducible: one seed, exact trees."""
        models = {}
        for target in targets:
            model = XGBRegressor(
                n_estimators=section.trees,
                max_depth=section.depth,
                learning_rate=section.learning_rate,
                subsample=section.row_sampling,
                colsample_bytree=section.feature_sampling,
                min_child_weight=section.min_child_weight,
                monotone_constraints=tuple([law(target)] * len(features)),
                tree_method="exact",
                random_state=section.seed,
                n_jobs=1,
            )
            models[target] = model.fit(pairs[list(features)], pairs[target])
        return cls(tuple(features), models)

    def forecast(self, features: Array) -> dict[str, Array]:
        """Forecasts (n,) of every target for features (n, len(self.features))."""
        return {target: self._one(model, features) for target, model in self.models.items()}

    def _one(self, model: XGBRegressor, features: Array) -> Array:
        # inplace_predict spares the DMatrix: a search asks for one row at a time, thousands of times
        return np.asarray(
            model.get_booster().inplace_predict(features, validate_features=False), dtype=np.float64
        )

    def gains(self, target: str, features: Features) -> dict[str, float]:
        """Each site's share of the target's total gain, summing to 1; keys like ``12.attention``.

        A feature of several sites shares its gain equally among them.
        """
        gains = self.models[target].get_booster().get_score(importance_type="total_gain")
        shares = {str(site): 0.0 for site in features.shape.sites()}
        for name, gain in gains.items():
            assert isinstance(gain, float)
            sites = features.sites_of(name)
            for site in sites:
                shares[str(site)] += gain / len(sites)
        total = sum(shares.values())
        return {site: share / total if total else 1 / len(shares) for site, share in shares.items()}

    def save(self, folder: Path) -> None:
        """Write predictor.json and one UBJ file a target."""
        folder.mkdir(parents=True, exist_ok=True)
        for target, model in self.models.items():
            model.save_model(folder / f"{target}.ubj")
        content = {"targets": list(self.models), "features": list(self.features)}
        write_json(folder / "predictor.json", SCHEMA, VERSION, content)

    @classmethod
    def load(cls, folder: Path) -> Predictor:
        """Read what `save` wrote.

        Raises:
            InputError: a file is missing, damaged or of another schema.
        """
        document = read_json(folder / "predictor.json", SCHEMA, VERSION)
        models = {}
        for target in document["targets"]:
            path = folder / f"{target}.ubj"
            model = XGBRegressor()
            try:
                model.load_model(path)
            except (XGBoostError, OSError) as error:
                raise InputError(f"{path} cannot be read; run `dvc repro train-predictor`") from error
            models[target] = model
        return cls(tuple(document["features"]), models)


def errors(measured: Array, forecast: Array) -> dict[str, float]:
    """R², MAE, RMSE (on the target's own scale) and Spearman's rank correlation."""
    ranks_nothing = np.ptp(measured) == 0 or np.ptp(forecast) == 0  # constant: no correlation is defined
    return {
        "r2": float(r2_score(measured, forecast)),
        "mae": float(mean_absolute_error(measured, forecast)),
        "rmse": float(root_mean_squared_error(measured, forecast)),
        "spearman": 0.0 if ranks_nothing else float(spearmanr(measured, forecast).statistic),
    }


def evaluate(predictor: Predictor, pairs: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Errors of every target on the rows of `pairs`, with the scale and number of pairs."""
    forecasts = predictor.forecast(pairs[list(predictor.features)].to_numpy())
    return {
        target: {"scale": scale(target), "pairs": len(pairs), **errors(pairs[target].to_numpy(), forecast)}
        for target, forecast in forecasts.items()
    }
