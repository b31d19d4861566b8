"""Stage `train-predictor`: pairs -> predictor and its errors."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from stages.build_dataset import table
from stages.build_dataset.features import Features
from stages.config.params import Params
from stages.evaluate.results.damage import DamageCurves
from stages.metrics.registered import metric_of
from stages.sample import designs
from stages.stage import DATA
from stages.tracking.records import FittedPredictor
from stages.tracking.tracker import Tracker, open_tracker
from stages.train_predictor import ablation, comparison, results
from stages.train_predictor.predictor import COVERAGE, Predictor, evaluate
from stages.train_predictor.results import PredictorErrors

HERE = DATA / "train_predictor"


def run(params: Params, arguments: argparse.Namespace) -> None:
    pairs, names, targets = table.read(DATA / "build_dataset" / "pairs.parquet")
    shape, _ = designs.read(DATA / "sample" / "architectures.json")
    curves = DamageCurves.read(DATA / "build_dataset" / "damage.json", stage="build-dataset")
    scores = DATA / "evaluate" / "importance.safetensors"
    features = Features.of_model(shape, params.build_dataset.band, scores, curves)
    section = params.train_predictor
    with open_tracker("train-predictor", params, enabled=not arguments.no_tracking) as tracker:
        trained = pairs["split"] == table.TRAIN
        judged = Predictor.fit(pairs[trained], names, targets, section)
        errors = evaluate(judged, pairs[~trained])
        lawful = [target for target in targets if metric_of(target).law]
        compared = comparison.compare(pairs, names, lawful, section, params.budget)
        results.write_judged(HERE / results.COMPARISON, compared)
        ablated = ablation.ablate(pairs, names, targets, section, params.budget)
        results.write_judged(HERE / results.ABLATION, ablated)
        # The errors are of a predictor that never saw the held-out pairs; the search's is refitted on all.
        predictor = Predictor.fit(pairs, names, targets, section)
        widths = comparison.intervals(pairs[trained], judged, section)
        covered = _coverage(judged, widths, pairs[~trained])
        predictor = replace(predictor, half_widths=widths)
        predictor.save(HERE / "predictor")
        values = pairs[names].to_numpy()
        importance = pd.DataFrame({t: predictor.gains(t, features, values) for t in targets})
        results.write_importance(HERE / results.IMPORTANCE, importance)
        results.write_forecasts(HERE / results.FORECASTS, pairs, judged.forecast(values), targets)
        for target in targets:
            errors[target] |= {"coverage": covered[target], "half_width": widths[target]}
        validated = _cross_validated(ablated)
        found = PredictorErrors(section.model, COVERAGE, errors, validated)
        results.write_errors(HERE / results.ERRORS, found)
        for target in targets:
            print(
                f"{target}: R² {errors[target]['r2']:.3f}, MAE {errors[target]['mae']:.4f}, "
                f"RMSE {errors[target]['rmse']:.4f}, Spearman {errors[target]['spearman']:.3f} "
                f"({metric_of(target).unit}; {errors[target]['pairs']} held-out pairs)"
            )
            _log(tracker, target, predictor, pairs[names], errors[target], validated[target], params)
        _print(compared, "out-of-fold forecasts")
        _print(ablated, f"{section.model} without each group of features")


def _coverage(judged: Predictor, widths: Mapping[str, float], pairs: pd.DataFrame) -> dict[str, float]:
    """The share of held-out pairs, by target, whose measured value lies within the forecast interval."""
    forecasts = judged.forecast(pairs[list(judged.features)].to_numpy())
    return {
        target: float(((pairs[target] - forecast).abs() <= widths[target]).mean())
        for target, forecast in forecasts.items()
    }


def _cross_validated(ablated: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Errors by target of forecasts of every pair compared on, by models that did not see it.

    The held-out pairs may be too few to lie near the budget: these are all that there are. What too few
    pairs leave unknown is left out.
    """
    rows = ablated[ablated["predictor"] == ablation.ALL]
    rows = rows.drop(columns=["scale", "predictor", "features", "learned_from"])
    by_target = rows.set_index("target").to_dict("index")
    return {
        str(target): {str(key): value for key, value in row.items() if not pd.isna(value)}
        for target, row in by_target.items()
    }


def _log(
    tracker: Tracker,
    target: str,
    predictor: Predictor,
    rows: pd.DataFrame,
    errors: Mapping[str, Any],
    validated: Mapping[str, Any],
    params: Params,
) -> None:
    alone = replace(
        predictor,
        models={target: predictor.models[target]},
        half_widths={target: predictor.half_widths[target]},
    )
    metric = metric_of(target)
    fitted = FittedPredictor(
        target=target,
        scale=metric.unit,
        law=metric.law,
        pairs=len(rows),
        settings=params.train_predictor.model_dump(),
        held_out=errors,
        cross_validated=validated,
    )
    example = rows.head(5)
    with tempfile.TemporaryDirectory() as folder:
        alone.save(Path(folder))
        forecast = pd.DataFrame(alone.forecast(example.to_numpy()))
        tracker.log_predictor(
            fitted, Path(folder), example, forecast, [HERE / name for name in results.FILES]
        )


def _print(compared: pd.DataFrame, what: str) -> None:
    columns = ["predictor", "r2", "spearman", "spearman_near_budget", "top_recall"]
    for target, rows in compared.groupby("target", sort=False):
        first = rows.iloc[0]
        compared_on, there = first["pairs"], first["of_pairs"]
        on = "" if compared_on == there else f" of {compared_on:,} of {there:,} pairs"
        print(f"\n{what}: {target}, {first['scale']}, on the same folds{on}:")
        print(rows[columns].dropna(axis=1, how="all").to_string(index=False, float_format="%.3f"))
        for _, few in rows[rows["learned_from"] < rows["learned_from"].max()].iterrows():
            print(f"{few['predictor']} learned from {few['learned_from']:,} pairs a fold, others from more")
