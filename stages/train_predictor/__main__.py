"""Stage `train-predictor`: pairs -> predictor and its errors.  Run: python -m stages.train_predictor"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

from stages.build_dataset import table
from stages.build_dataset.features import Features
from stages.files import write_json
from stages.params import Params
from stages.sample import designs
from stages.stage import DATA, main
from stages.tracking import Tracker, open_tracker
from stages.train_predictor.predictor import Predictor, evaluate, law, scale


def run(params: Params, arguments: argparse.Namespace) -> None:
    here = DATA / "train_predictor"
    pairs, names, targets = table.read(DATA / "build_dataset" / "pairs.parquet")
    shape, _ = designs.read(DATA / "sample" / "architectures.json")
    features = Features.of_model(shape, params.sample.bundle, DATA / "evaluate" / "importance.safetensors")
    section = params.train_predictor
    with open_tracker("train-predictor", params, enabled=not arguments.no_tracking) as tracker:
        trained = pairs["split"] == table.TRAIN
        judged = Predictor.fit(pairs[trained], names, targets, section)
        errors = evaluate(judged, pairs[~trained])
        # The errors are of a predictor that never saw the held-out pairs; the search's is refitted on all.
        predictor = Predictor.fit(pairs, names, targets, section)
        predictor.save(here / "predictor")
        importance = pd.DataFrame({t: predictor.gains(t, features) for t in targets}).rename_axis("site")
        importance.to_csv(here / "importance.csv")
        forecasts = pd.DataFrame(judged.forecast(pairs[names].to_numpy())).add_prefix("forecast.")
        measured = pairs[["architecture", "design", "split", "overall_ratio", *targets]]
        pd.concat([measured, forecasts], axis=1).to_csv(here / "forecasts.csv", index=False)
        write_json(here / "metrics.json", "prunecast.predictor-errors", 1, {"held_out": errors})
        for target in targets:
            print(
                f"{target}: R² {errors[target]['r2']:.3f}, MAE {errors[target]['mae']:.4f}, "
                f"RMSE {errors[target]['rmse']:.4f}, Spearman {errors[target]['spearman']:.3f} "
                f"({scale(target)}; {errors[target]['pairs']} held-out pairs)"
            )
            _log(tracker, target, predictor, pairs[names], errors[target], section.model_dump(), here)


def _log(
    tracker: Tracker,
    target: str,
    predictor: Predictor,
    rows: pd.DataFrame,
    errors: dict[str, Any],
    section: dict[str, Any],
    here: Path,
) -> None:
    tracker.log_predictor(
        target,
        predictor.models[target],
        rows.head(5),
        {**section, "target": target, "scale": scale(target), "monotone": law(target), "pairs": len(rows)},
        {f"held_out.{key}": value for key, value in errors.items() if isinstance(value, float)},
        [here / "importance.csv", here / "forecasts.csv", here / "metrics.json"],
    )


if __name__ == "__main__":
    main("train-predictor", run)
