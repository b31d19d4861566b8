"""What `train-predictor` leaves beside the predictor: how far its forecasts are off, for people and plots.

``forecasts.csv`` has a row a pair, ``comparison.csv`` one a kind of predictor and target, ``ablation.csv``
one a choice of features and target, ``importance.csv`` one a site; ``metrics.json`` has the errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.build_dataset.table import HELD_OUT
from stages.files import check_seals, numbers, read_csv, read_document, seals, write_json, write_text
from stages.metrics.perplexity import LOG_PPL
from stages.metrics.registered import by_corpus

if TYPE_CHECKING:
    import pandas as pd

SCHEMA, VERSION = "prunecast.predictor-errors", 4
FORECASTS, COMPARISON, ABLATION = "forecasts.csv", "comparison.csv", "ablation.csv"
IMPORTANCE, ERRORS = "importance.csv", "metrics.json"
TABLES = (IMPORTANCE, FORECASTS, COMPARISON, ABLATION)
FILES = (*TABLES, ERRORS)

STAGE = "train-predictor"
_FORECAST = "forecast."
_MEAN = LOG_PPL.name
_ID = ["architecture", "design", "split", "overall_ratio"]
_JUDGED = ["target", "scale", "predictor"]
_FEATURES = "features"


@dataclass(frozen=True)
class ForecastPair:
    """A pair, and what a predictor forecast of it that saw the training pairs only; by target."""

    architecture: str
    """The id."""
    design: str
    held_out: bool
    overall_ratio: float
    measured: Mapping[str, float]
    forecast: Mapping[str, float]


@dataclass(frozen=True)
class Judged:
    """Errors of out-of-fold forecasts of one target (`stages.train_predictor.comparison.judge`).

    `predictor` says what was fitted, or left out; `features` on how many features, where that differs.
    A figure that too few pairs leave unknown is missing.
    """

    target: str
    scale: str
    predictor: str
    errors: Mapping[str, float]
    features: int | None = None


@dataclass(frozen=True)
class PredictorErrors:
    """Errors of the predictor, by target.

    `held_out`: on pairs that it had not seen, with "scale", "pairs", the "half_width" of the forecast
    interval and its "coverage" of them, to be held against `promised_coverage`. `cross_validated`: of
    every pair by models that did not see it.
    """

    kind: str
    promised_coverage: float
    held_out: Mapping[str, Mapping[str, Any]]
    cross_validated: Mapping[str, Mapping[str, float]]


def write_errors(path: Path, errors: PredictorErrors) -> None:
    """Write the errors, and the checksums of the tables that lie beside them."""
    tables = [name for name in TABLES if (path.parent / name).is_file()]
    write_json(path, SCHEMA, VERSION, asdict(errors) | {"tables": seals(path.parent, tables)})


def read_errors(path: Path) -> PredictorErrors:
    """Read what `write_errors` wrote, when the tables beside it are those that were there.

    Raises:
        InputError: the file is missing, of another schema, or damaged, or a table is.
    """

    def make(document: dict[str, Any]) -> PredictorErrors:
        check_seals(path.parent, document["tables"], STAGE)
        return PredictorErrors(**{field.name: document[field.name] for field in fields(PredictorErrors)})

    return read_document(path, SCHEMA, VERSION, STAGE, make)


def write_forecasts(
    path: Path, pairs: pd.DataFrame, forecasts: Mapping[str, Any], targets: Sequence[str]
) -> None:
    """Write the pairs' measured `targets` beside their forecasts, arrays (n,) by target.

    The mean log PPL of the texts stands beside them: a name for dvc.yaml's plots, whatever the corpora
    are called.
    """
    import pandas as pd

    forecast = pd.DataFrame(dict(forecasts)).add_prefix(_FORECAST)
    both = [_with_mean(pairs[[*_ID, *targets]]), _with_mean(forecast, _FORECAST)]
    write_text(path, pd.concat(both, axis=1).to_csv(index=False))


def read_forecasts(path: Path) -> list[ForecastPair]:
    """Read what `write_forecasts` wrote.

    Raises:
        InputError: the file is missing or damaged, or lacks a column.
    """
    rows = read_csv(path, [*_ID, _MEAN, f"{_FORECAST}{_MEAN}"], STAGE)
    found = []
    for row in rows:
        values = numbers({k: v for k, v in row.items() if k not in _ID[:3]}, path, STAGE)
        forecast = {k.removeprefix(_FORECAST): v for k, v in values.items() if k.startswith(_FORECAST)}
        forecast.pop(_MEAN, None)
        measured = {target: values[target] for target in forecast if target in values}
        held_out = row["split"] == HELD_OUT
        ratio = values.get("overall_ratio", float("nan"))
        found.append(ForecastPair(row["architecture"], row["design"], held_out, ratio, measured, forecast))
    return found


def write_importance(path: Path, importance: pd.DataFrame) -> None:
    """Write each site's share of a target's importance; sites are the index."""
    write_text(path, _with_mean(importance).rename_axis("site").to_csv())


def write_judged(path: Path, table: pd.DataFrame) -> None:
    """Write the table of `comparison.compare` or `ablation.ablate`."""
    write_text(path, table.to_csv(index=False))


def read_judged(path: Path) -> list[Judged]:
    """Read what `write_judged` wrote.

    Raises:
        InputError: the file is missing or damaged, or lacks a column.
    """
    found = []
    for row in read_csv(path, [*_JUDGED, "r2", "spearman"], STAGE):
        errors = numbers({k: v for k, v in row.items() if k not in _JUDGED}, path, STAGE)
        features = errors.pop(_FEATURES, None)
        count = None if features is None else int(features)
        found.append(Judged(row["target"], row["scale"], row["predictor"], errors, count))
    return found


def _with_mean(table: pd.DataFrame, prefix: str = "") -> pd.DataFrame:
    columns = {str(name).removeprefix(prefix): name for name in table.columns}
    texts = list(by_corpus(columns, LOG_PPL).values())
    return table.assign(**{f"{prefix}{_MEAN}": table[texts].mean(axis=1)})
