"""The accuracy predictor: a model a target, from an architecture's features to what it measures.

One model a target, so that each can carry its own law (multi-output trees take none), which its
metric states: cutting any site further cannot lower a perplexity nor raise the likelihood of a right
answer, on average; MMLU accuracy is too coarse for it and is left free.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from stages.architecture import Architecture, Site
from stages.build_dataset.features import Array, Features
from stages.config.params import TrainPredictor
from stages.files import check_seals, read_document, seals, write_json
from stages.metrics.registered import metric_of
from stages.train_predictor.models import Roles, TargetModel

SCHEMA, VERSION = "prunecast.predictor", 4
STAGE = "train-predictor"
COVERAGE = 0.8


@dataclass(frozen=True)
class Predictor:
    """Forecasts every target from features (n, len(features)).

    `half_widths`, by target, make a forecast an interval: the measured value lies within so much of
    the forecast for `COVERAGE` of architectures like those that it was fitted on. Empty if unknown.
    """

    kind: str
    features: Sequence[str]
    models: Mapping[str, TargetModel]
    half_widths: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def fit(
        cls, pairs: pd.DataFrame, features: Sequence[str], targets: Sequence[str], section: TrainPredictor
    ) -> Predictor:
        """Fit one model a target on the rows of `pairs`. Reproducible."""
        values = pairs[list(features)].to_numpy()
        roles = Roles.of(features)
        models = {
            t: TargetModel.fit(values, pairs[t].to_numpy(), metric_of(t).law, section, roles) for t in targets
        }
        return cls(section.model, tuple(features), models)

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that name the fitted predictor."""
        parts = hashlib.sha256("\n".join(self.features).encode())
        for target, model in self.models.items():
            parts.update(target.encode() + model.to_bytes())
        return parts.hexdigest()[:12]

    def forecast(self, features: Array) -> dict[str, Array]:
        """Forecasts (n,) of every target for features (n, len(self.features))."""
        return {target: model.forecast(features) for target, model in self.models.items()}

    def gains(self, target: str, features: Features, rows: Array) -> dict[str, float]:
        """Each site's share in deciding the target over `rows` (n, F), summing to 1.

        Keys are like ``12.attention``. A feature of several sites shares its gain (`Features.shares`).
        """
        shares = {str(site): 0.0 for site in features.shape.sites()}
        for name, gain in zip(self.features, self.models[target].gains(rows), strict=True):
            for site, share in features.shares(name).items():
                shares[str(site)] += float(gain) * share
        total = sum(shares.values())
        return {site: share / total if total else 1 / len(shares) for site, share in shares.items()}

    def contributions(
        self, features: Features, architecture: Architecture, weights: Mapping[str, float]
    ) -> dict[str, dict[Site, float]]:
        """What each site adds to an architecture's forecast objective above the dense model's, by part.

        The parts are those of `TargetModel.contributions`, and their sum over parts and sites is the whole
        rise. A feature of several sites shares its part equally among those that are cut.
        """
        rows = features.matrix([features.shape.dense(), architecture])
        cut = {site for site in features.shape.sites() if architecture.site_ratio(features.shape, site)}
        found: dict[str, dict[Site, float]] = {}
        for target, weight in weights.items():
            sign = 1 if metric_of(target).lower_is_better else -1
            signed = sign * weight / sum(weights.values())
            for part, values in self.models[target].contributions(rows).items():
                of_sites = found.setdefault(part, dict.fromkeys(features.shape.sites(), 0.0))
                for name, value in zip(self.features, values[1] - values[0], strict=True):
                    spoken_of = features.sites_of(name)
                    sharing = [site for site in spoken_of if site in cut] or spoken_of
                    for site in sharing:
                        of_sites[site] += signed * float(value) / len(sharing)
        return found

    def save(self, folder: Path) -> None:
        """Write one UBJ file a target that has trees, and predictor.json, which has their checksums.

        Raises:
            InputError: the disk does not take a file.
        """
        models = {t: model.save(folder / f"{t}.ubj") for t, model in self.models.items()}
        content = {
            "kind": self.kind,
            "features": list(self.features),
            "half_widths": dict(self.half_widths),
            "models": models,
            "files": seals(folder, [model["trees"] for model in models.values() if model["trees"]]),
        }
        write_json(folder / "predictor.json", SCHEMA, VERSION, content)

    @classmethod
    def load(cls, folder: Path) -> Predictor:
        """Read what `save` wrote.

        Raises:
            InputError: a file is missing, damaged or of another schema.
        """

        def make(document: dict[str, Any]) -> Predictor:
            check_seals(folder, document["files"], STAGE)
            names = tuple(document["features"])
            roles = Roles.of(names)
            models = {
                t: TargetModel.load(folder, content, roles) for t, content in document["models"].items()
            }
            return cls(document["kind"], names, models, document["half_widths"])

        return read_document(folder / "predictor.json", SCHEMA, VERSION, STAGE, make)


def errors(measured: Array, forecast: Array) -> dict[str, float]:
    """R², MAE, RMSE (on the target's own scale) and Spearman's rank correlation.

    Of measured values that are all the same nothing is explained nor ranked: both are 0.
    """
    ranks_nothing = np.ptp(measured) == 0 or np.ptp(forecast) == 0  # constant: no correlation is defined
    return {
        "r2": 0.0 if np.ptp(measured) == 0 else float(r2_score(measured, forecast)),
        "mae": float(mean_absolute_error(measured, forecast)),
        "rmse": float(root_mean_squared_error(measured, forecast)),
        "spearman": 0.0 if ranks_nothing else float(spearmanr(measured, forecast).statistic),
    }


def evaluate(predictor: Predictor, pairs: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Errors of every target on the rows of `pairs`, with the scale and number of pairs."""
    forecasts = predictor.forecast(pairs[list(predictor.features)].to_numpy())
    return {
        target: {
            "scale": metric_of(target).unit,
            "pairs": len(pairs),
            **errors(pairs[target].to_numpy(), forecast),
        }
        for target, forecast in forecasts.items()
    }
