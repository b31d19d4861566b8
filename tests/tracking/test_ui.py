"""The UI opens where the runs are, and says what is not there."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from stages.files import InputError
from stages.tracking.ui import address


def store_of(path: Path, runs: list[tuple[int, str]]) -> Path:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE runs (experiment_id INTEGER, lifecycle_stage TEXT)")
        database.executemany("INSERT INTO runs VALUES (?, ?)", runs)
    database.close()
    return path


def test_the_address_is_of_the_experiment_with_most_runs(tmp_path: Path) -> None:
    runs = [(1, "active"), (3, "active"), (3, "active"), *[(2, "deleted")] * 5]
    found = address(store_of(tmp_path / "mlflow.db", runs), 5001)
    assert found == "http://127.0.0.1:5001/#/experiments/3/runs"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path, "is not there: nothing was tracked yet"),
        (lambda path: store_of(path, []), "holds no run"),
        (lambda path: path.write_bytes(b"no database at all" * 100), "cannot be read as MLflow"),
    ],
    ids=["nothing", "no run", "no store"],
)
def test_what_is_not_there_is_told(tmp_path: Path, make: object, says: str) -> None:
    assert callable(make)
    make(tmp_path / "mlflow.db")
    with pytest.raises(InputError, match=says):
        address(tmp_path / "mlflow.db", 5000)
