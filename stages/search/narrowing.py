"""Narrow the search space by what the predictor learned.

The paper's rule (arXiv 2309.09507, section 3.3): sites whose ratios matter much to the forecast are
limited to mild ratios, sites that matter little are opened to strong ones. What matters is read
either from the predictor's importances, as in the paper, or from damage curves: what the forecast
says that cutting a site alone costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import pandas as pd

from stages.architecture import ModelShape, Site
from stages.build_dataset.features import ALONE, Features
from stages.config.params import Narrowing, Search
from stages.files import InputError
from stages.metrics.objective import objective_of
from stages.sample.space import Space
from stages.search.narrowed_space import Class, NarrowedSite
from stages.train_predictor.predictor import Predictor


def importances(
    by: Literal["importance", "damage"],
    predictor: Predictor,
    features: Features,
    pairs: pd.DataFrame,
    weights: Mapping[str, float],
) -> dict[str, float]:
    """Each site's share, keys like ``12.attention``, summing to 1.

    ``importance``: of the predictor's gains, averaged over the objective's targets. ``damage``: of
    the forecast rise of the objective when the site alone is cut by `ALONE`, a parameter removed.
    """
    if by == "importance":
        rows = pairs[list(predictor.features)].to_numpy()
        gains = pd.DataFrame({target: predictor.gains(target, features, rows) for target in weights})
        return {str(site): float(value) for site, value in gains.mean(axis=1).items()}
    shape = features.shape
    space = Space(shape, 1, {})
    sites = list(shape.sites())
    alone = [space.from_ratios({site: ALONE}) for site in sites]
    forecasts = predictor.forecast(features.matrix([shape.dense(), *alone]))
    cost = [objective_of({t: f[i] for t, f in forecasts.items()}, weights) for i in range(len(sites) + 1)]
    rates = [max(0.0, cost[i + 1] - cost[0]) / max(a.overall_ratio(shape), 1e-9) for i, a in enumerate(alone)]
    total = sum(rates)
    return {str(s): r / total if total else 1 / len(sites) for s, r in zip(sites, rates, strict=True)}


def narrow(
    shape: ModelShape, prunable: Sequence[Site], importance: Mapping[str, float], section: Narrowing
) -> list[NarrowedSite]:
    """Classify every site by its importance (keys like ``12.attention``); all sites, by layer.

    Sites that are not `prunable` are exempt. Ties go to the earlier layer.
    """
    ranked = sorted(prunable, key=lambda site: (-importance[str(site)], site))
    first, last = section.counts(len(ranked))
    sensitive, insensitive = set(ranked[:first]), set(ranked[len(ranked) - last :])

    def decide(site: Site) -> tuple[Class, Sequence[float]]:
        if site not in ranked:
            return "exempt", (0.0, 0.0)
        if site in sensitive:
            return "sensitive", section.sensitive_ratios
        return (
            ("insensitive", section.insensitive_ratios)
            if site in insensitive
            else ("other", section.other_ratios)
        )

    narrowed = []
    for site in shape.sites():
        label, (low, high) = decide(site)
        narrowed.append(NarrowedSite(site, importance[str(site)], label, (low, high)))
    return narrowed


def space_of(shape: ModelShape, granularity: int, narrowed: Sequence[NarrowedSite]) -> Space:
    """The space in which the search moves."""
    return Space(shape, granularity, {n.site: n.interval for n in narrowed if n.label != "exempt"})


def narrowed(
    search: Search, granularity: int, predictor: Predictor, features: Features, pairs: pd.DataFrame
) -> tuple[list[NarrowedSite], Space]:
    """What a predictor decides for every site, and the space that it narrows.

    A site that no pair cuts and that has no damage curve stays dense: nothing is known of it.
    """
    importance = importances(search.narrowing.by, predictor, features, pairs, search.objective)
    curves = () if features.curves is None else features.curves.points
    cut = [
        s for s in features.shape.sites() if s in curves or pairs[f"ratio.{s.layer:02d}.{s.kind}"].max() > 0
    ]
    sites = narrow(features.shape, cut, importance, search.narrowing)
    return sites, space_of(features.shape, granularity, sites)


def check_reachable(space: Space, overall_ratio: float, key: str) -> None:
    """Raise InputError, with the reachable interval, unless the narrowed space holds the ratio.

    `key` names the parameter that asks for it.
    """
    low, high = space.reachable()
    if not low <= overall_ratio <= high:
        raise InputError(
            f"params.yaml: {key} is {overall_ratio:g}; the narrowed space reaches "
            f"{low:.4f} to {high:.4f}. Change it, or search.narrowing's fractions and ratios"
        )
