"""How well the default's predictor forecasts architectures that it has not seen, near a budget and far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stages.architecture import Architecture
from stages.config.params import Params
from stages.sample import designs
from stages.search.rounds import Metrics
from stages.train_predictor.predictor import Predictor, errors
from tests.benchmarks.study.setting import Setting

KINDS = ("curves+xgboost", "curves", "additive+xgboost", "additive", "xgboost")
NEAR = 0.02
"""How far from the budget an overall ratio is near it."""
WIDE, CLOSE = 48, 96
"""Held-out architectures: over the default's overall ratios, and near the budget."""

Measure = Callable[[Sequence[Architecture]], Mapping[Architecture, Metrics]]


def compare(setting: Setting, params: Params, measure: Measure) -> list[dict[str, Any]]:
    """Errors of every kind of predictor, fitted on the default's pairs, on held-out ones.

    These are of the default's design too, drawn with other seeds. A row a kind, place and target;
    `mean` is the objective.
    """
    shape, sample = setting.bench.network.shape, params.sample
    pairs = [d.architecture for d in designs.all_designs(shape, sample, params.budget)]
    ratio = params.budget.overall_ratio
    assert ratio is not None
    asked: dict[str, dict[str, Any]] = {
        "wide": {"spread": WIDE, "seed": sample.seed + 1000},
        "near": {
            "spread": CLOSE,
            "seed": sample.seed + 2000,
            "spread_overall_ratios": [ratio - NEAR, ratio + NEAR],
        },
    }
    held_out = {
        place: [d.architecture for d in designs.spread(shape, sample.model_copy(update=changed), pairs)]
        for place, changed in asked.items()
    }
    known = measure(list(dict.fromkeys([*pairs, *held_out["wide"], *held_out["near"]])))
    targets = list(params.search.objective)
    features = setting.features(params, {a: known[a] for a in pairs})

    def table(architectures: Sequence[Architecture]) -> pd.DataFrame:
        made = pd.DataFrame(features.matrix(architectures), columns=features.names)
        return made.assign(**{t: [known[a][t] for a in architectures] for t in targets})

    fitted_on = table(pairs)
    tables = {place: table(architectures) for place, architectures in held_out.items()}
    rows = []
    for kind in KINDS:
        section = params.train_predictor.model_copy(update={"model": kind})
        predictor = Predictor.fit(fitted_on, features.names, targets, section)
        for place, measured in tables.items():
            forecast = predictor.forecast(measured[features.names].to_numpy())
            values = {t: (measured[t].to_numpy(), forecast[t]) for t in targets}
            values["mean"] = tuple(np.mean([v[i] for v in values.values()], axis=0) for i in (0, 1))
            rows += [
                {"model": kind, "place": place, "target": t, "pairs": len(pairs), "held_out": len(m)}
                | {name: round(value, 4) for name, value in errors(m, f).items()}
                for t, (m, f) in values.items()
            ]
    return rows
