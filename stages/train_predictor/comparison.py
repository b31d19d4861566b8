"""Kinds of predictor side by side: cross-validated on the same folds of the same pairs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.exceptions import ConvergenceWarning

from stages.build_dataset.features import is_of_site
from stages.config.budget import Budget
from stages.config.params import TrainPredictor
from stages.metrics.metric import Metric
from stages.metrics.registered import metric_of
from stages.progress import Progress
from stages.sample.designs import SINGLE_SITE
from stages.train_predictor import models
from stages.train_predictor.additive import Array
from stages.train_predictor.curves import AnyCurves, Curves
from stages.train_predictor.models import Forecast, Roles, TargetModel
from stages.train_predictor.predictor import COVERAGE, Predictor, errors

NEAR_BUDGET = 0.02
"""Overall ratios this far from the budget are where the search lives."""
TOP = 20
FEW = 8
COMPARED, DRAWN = 600, 400
"""Predictors are compared on all of so many pairs; of more, on so many drawn by lot."""
_OF_PROCESS = 300  # pairs, by lot, that scikit-learn's process learns from: it takes their number cubed

Fit = Callable[[Array, Array, int], Forecast]


@dataclass(frozen=True)
class Contestant:
    """A kind of model on a choice of features, which learns from `most` pairs at most."""

    name: str
    features: Sequence[str]
    fit: Fit
    most: int | None = None


def own(name: str, section: TrainPredictor, features: Sequence[str]) -> Contestant:
    """Our predictor of the kind that the section names."""
    roles = Roles.of(features)

    def fit(x: Array, y: Array, sign: int) -> Forecast:
        return TargetModel.fit(x, y, sign, section, roles, _curves_once).forecast

    return Contestant(name, features, fit)


def _curves_once(damages: Array, target: Array) -> tuple[AnyCurves, Array]:
    """`Curves.fit`, remembered: contestants whose other features differ share their curves."""
    return _curves_of(damages.shape[1], damages.tobytes(), target.tobytes())


@lru_cache(maxsize=32)
def _curves_of(sites: int, damages: bytes, target: bytes) -> tuple[AnyCurves, Array]:
    return Curves.fit(np.frombuffer(damages).reshape(-1, sites), np.frombuffer(target))


def contestants(features: Sequence[str], section: TrainPredictor) -> list[Contestant]:
    """What is compared: the paper's, ours, each of our parts, and two references from scikit-learn."""
    ratios = [name for name in features if name.startswith("ratio.") and name.count(".") == 2]

    def ours(name: str, kind: str, chosen: Sequence[str]) -> Contestant:
        return own(name, section.model_copy(update={"model": kind}), chosen)

    def histogram(x: Array, y: Array, sign: int) -> Forecast:
        model = models.histogram_trees(sign, x.shape[1], section.seed)
        model.fit(x, y)
        return model.predict

    def process(x: Array, y: Array, sign: int) -> Forecast:
        scaled = np.where(x.max(axis=0) > 0, x.max(axis=0), 1)
        model = models.gaussian_process(section.seed)
        with warnings.catch_warnings():  # that its optimiser met a bound is seen in how well it forecasts
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x / scaled, y)
        return lambda rows: model.predict(rows / scaled)

    known = any(is_of_site(name) for name in features)
    return [
        ours("xgboost on ratios (the paper's)", "xgboost", ratios),
        ours("xgboost", "xgboost", features),
        *(
            [ours("curves", "curves", features), ours("curves+xgboost", "curves+xgboost", features)]
            if known
            else []
        ),
        ours("additive", "additive", features),
        ours("additive+xgboost on ratios", "additive+xgboost", ratios),
        ours("additive+xgboost", "additive+xgboost", features),
        Contestant("scikit-learn histogram trees", features, histogram),
        Contestant("scikit-learn Gaussian process", features, process, _OF_PROCESS),
    ]


def out_of_fold(contestant: Contestant, pairs: pd.DataFrame, target: str, folds: int, seed: int) -> Array:
    """Forecasts (n,) of each pair by a model that did not see it.

    Single-site pairs, of which features are made, are in no fold: every model sees them, and their
    forecasts are NaN.
    """
    x, y = pairs[list(contestant.features)].to_numpy(), pairs[target].to_numpy()
    drawn = np.flatnonzero(pairs["design"] != SINGLE_SITE)
    fold = np.full(len(y), -1)
    fold[drawn] = np.random.default_rng(seed).permutation(len(drawn)) % min(folds, len(drawn))
    forecast = np.full(len(y), np.nan)
    for held in range(fold.max() + 1):
        seen = _drawn(np.flatnonzero(fold != held), contestant.most, seed)
        fitted = contestant.fit(x[seen], y[seen], metric_of(target).law)
        forecast[fold == held] = fitted(x[fold == held])
    return forecast


def _drawn(places: NDArray[np.intp], most: int | None, seed: int) -> NDArray[np.intp]:
    """All places, or `most` of them by lot, in their order."""
    if most is None or len(places) <= most:
        return places
    return np.sort(np.random.default_rng(seed).choice(places, most, replace=False))


def judge(
    measured: Array, forecast: Array, metric: Metric, overall_ratios: Array, budget: Budget
) -> dict[str, float]:
    """R², MAE, RMSE, Spearman; Spearman within `NEAR_BUDGET` of the budget; recall of the `TOP` best.

    The best are the lowest or the highest, as the metric says; of fewer than 2 `TOP` pairs half are the
    best, and ``top`` says how many. NaN where fewer than `FEW` pairs lie near the budget, too few to
    rank, or it states no overall ratio.
    """
    wanted = float("inf") if budget.overall_ratio is None else budget.overall_ratio
    near = np.abs(overall_ratios - wanted) <= NEAR_BUDGET
    top = min(TOP, len(measured) // 2)
    first, forecast_first = (np.argsort(metric.cost(v), kind="stable")[:top] for v in (measured, forecast))
    best = set(first.tolist()) & set(forecast_first.tolist())
    few = near.sum() < FEW or np.ptp(forecast[near]) == 0 or np.ptp(measured[near]) == 0
    return {
        **errors(measured, forecast),
        "spearman_near_budget": float("nan") if few else float(spearmanr(measured[near], forecast[near])[0]),
        "pairs_near_budget": int(near.sum()),
        "top_recall": len(best) / top,
        "top": top,
    }


def compare(
    pairs: pd.DataFrame,
    features: Sequence[str],
    targets: Sequence[str],
    section: TrainPredictor,
    budget: Budget,
) -> pd.DataFrame:
    """Kinds of predictor side by side: `judged` of all `contestants`."""
    return judged(contestants(features, section), pairs, targets, section, budget)


def judged(
    competing: Sequence[Contestant],
    pairs: pd.DataFrame,
    targets: Sequence[str],
    section: TrainPredictor,
    budget: Budget,
) -> pd.DataFrame:
    """One row a contestant and target: errors of out-of-fold forecasts, all on the same folds.

    Of more than `COMPARED` pairs `DRAWN` are drawn: ``pairs`` says how many of ``of_pairs`` were
    forecast, and ``learned_from`` how many a model saw at most.
    """
    there = int((pairs["design"] != SINGLE_SITE).sum())
    pairs = _some(pairs, section.seed)
    scored = pairs["design"] != SINGLE_SITE
    overall = pairs.loc[scored, "overall_ratio"].to_numpy()
    rows = []
    work = [(target, c) for target in targets for c in competing]
    for target, contestant in Progress(work, desc="comparing predictors", unit="predictor", leave=False):
        forecast = out_of_fold(contestant, pairs, target, section.folds, section.seed)
        measured = pairs.loc[scored, target].to_numpy()
        metric = metric_of(target)
        figures = judge(measured, forecast[scored], metric, overall, budget)
        learned = len(pairs) - int(scored.sum()) // min(section.folds, int(scored.sum()))
        counts = {
            "pairs": int(scored.sum()),
            "of_pairs": there,
            "learned_from": learned if contestant.most is None else min(learned, contestant.most),
        }
        rows.append(
            {"target": target, "scale": metric.unit, "predictor": contestant.name, **figures, **counts}
        )
    return pd.DataFrame(rows)


def _some(pairs: pd.DataFrame, seed: int) -> pd.DataFrame:
    """All pairs of single sites, and of the others all, or of more than `COMPARED` `DRAWN` by lot."""
    alone = pairs["design"] == SINGLE_SITE
    many = int((~alone).sum()) > COMPARED
    chosen = _drawn(np.flatnonzero(~alone), DRAWN if many else None, seed)
    return pairs.iloc[np.sort(np.concatenate([np.flatnonzero(alone), chosen]))]


def intervals(pairs: pd.DataFrame, predictor: Predictor, section: TrainPredictor) -> dict[str, float]:
    """Half the width, by target, of the interval that holds `COVERAGE` of the out-of-fold errors.

    Conformal prediction (Vovk et al. 2005; Lei et al. 2018, "Distribution-free predictive inference
    for regression"): the ⌈COVERAGE (n + 1)⌉-th smallest error of n pairs.
    """
    chosen = own("", section, predictor.features)
    widths = {}
    for target in predictor.models:
        forecast = out_of_fold(chosen, pairs, target, section.folds, section.seed)
        missed = np.abs(pairs[target].to_numpy() - forecast)
        missed = np.sort(missed[~np.isnan(missed)])
        place = int(np.ceil(COVERAGE * (len(missed) + 1))) - 1
        widths[target] = float(missed[min(place, len(missed) - 1)])
    return widths
