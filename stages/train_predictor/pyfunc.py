"""What MLflow loads a registered predictor with: features in, forecasts out.

A loader module and plain files (JSON, UBJ), so that no pickle is ever read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from stages.train_predictor.predictor import Predictor


class ServedPredictor:
    """A predictor behind MLflow's `pyfunc` interface."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def predict(self, rows: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """Forecasts, a column a target, for rows that hold the features' columns."""
        values = rows[list(self._predictor.features)].to_numpy(dtype="float64")
        return pd.DataFrame(self._predictor.forecast(values), index=rows.index)


def _load_pyfunc(path: str) -> ServedPredictor:
    return ServedPredictor(Predictor.load(Path(path)))
