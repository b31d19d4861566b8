"""The files beside the predictor are read as they were written, or an error says what to run."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages.files import InputError
from stages.train_predictor import results
from stages.train_predictor.results import ForecastPair, Judged, PredictorErrors

PAIRS = pd.DataFrame(
    {
        "architecture": ["0123", "4567"],
        "design": ["spread", "dense"],
        "split": ["held-out", "train"],
        "overall_ratio": [0.1 + 0.2, 0.0],
        "ratio.00.mlp": [0.5, 0.0],
        "log_ppl.a": [3.1, 3.0],
        "log_ppl.b": [2.9, 2.8],
        "quiz.accuracy": [0.25, 0.5],
    }
)
TARGETS = ["log_ppl.a", "log_ppl.b", "quiz.accuracy"]
FORECASTS = {target: np.array([1 / 3, 2 / 3]) for target in TARGETS}


def test_forecasts_are_read_to_the_last_digit(tmp_path: Path) -> None:
    path = tmp_path / "forecasts.csv"
    results.write_forecasts(path, PAIRS, FORECASTS, TARGETS)
    first, second = results.read_forecasts(path)
    measured = {"log_ppl.a": 3.1, "log_ppl.b": 2.9, "quiz.accuracy": 0.25}
    assert first == ForecastPair("0123", "spread", True, 0.1 + 0.2, measured, dict.fromkeys(TARGETS, 1 / 3))
    assert not second.held_out
    table = pd.read_csv(path)
    assert table["log_ppl"].tolist() == pytest.approx([3.0, 2.9])  # what dvc.yaml's plots take


def test_judged_predictors_are_read_and_what_is_unknown_is_left_out(tmp_path: Path) -> None:
    row = {"target": "log_ppl.a", "scale": "nats, of a", "predictor": "xgboost", "r2": 0.5, "spearman": 0.7}
    path = tmp_path / "comparison.csv"
    results.write_judged(path, pd.DataFrame([row | {"spearman_near_budget": math.nan}]))
    expected = {"r2": 0.5, "spearman": 0.7}
    assert results.read_judged(path) == [Judged("log_ppl.a", "nats, of a", "xgboost", expected)]
    results.write_judged(path, pd.DataFrame([row | {"features": 7}]))
    assert results.read_judged(path) == [Judged("log_ppl.a", "nats, of a", "xgboost", expected, 7)]


def test_errors_are_read_as_they_were_written(tmp_path: Path) -> None:
    held_out = {"log_ppl.a": {"scale": "nats", "pairs": 4, "r2": 0.5}}
    errors = PredictorErrors("curves", 0.8, held_out, {"log_ppl.a": {"r2": 0.9}})
    results.write_errors(tmp_path / "metrics.json", errors)
    assert results.read_errors(tmp_path / "metrics.json") == errors


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("architecture,design\n0123,spread\n", ["lacks the column 'split'", "it has architecture, design"]),
        ("", ["it has none"]),
        ("architecture,design,split,overall_ratio,log_ppl,forecast.log_ppl\n0123,spread\n", ["line 2"]),
        ("architecture,design,split,overall_ratio,log_ppl,forecast.log_ppl\na,b,c,d,1,1\n", ["'d'"]),
        (None, ["is not there"]),
    ],
)
def test_a_table_that_cannot_be_read_says_which_stage_writes_it(
    tmp_path: Path, content: str | None, words: list[str]
) -> None:
    path = tmp_path / "forecasts.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError) as caught:
        results.read_forecasts(path)
    for word in [*words, "forecasts.csv", "dvc repro train-predictor"]:
        assert word in str(caught.value)
