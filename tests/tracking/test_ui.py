"""The UI opens where the runs are, and says what is not there."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from stages.files import InputError
from stages.tracking import sqlite_store, store
from stages.tracking.ui import addresses
from stages.tracking.views import FINAL, RUNS, TAG, WORDS


def store_of(path: Path, runs: list[tuple[int, str]], tags: Sequence[tuple[int, str]] = ()) -> Path:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE runs (experiment_id INTEGER, lifecycle_stage TEXT)")
        database.executemany("INSERT INTO runs VALUES (?, ?)", runs)
        database.execute("CREATE TABLE experiment_tags (experiment_id INTEGER, key TEXT)")
        database.executemany("INSERT INTO experiment_tags VALUES (?, ?)", tags)
    database.close()
    return path


def test_the_addresses_are_of_the_experiment_with_most_runs(tmp_path: Path) -> None:
    runs = [(1, "active"), (3, "active"), (3, "active"), *[(2, "deleted")] * 5]
    tags = [(3, TAG + RUNS), (3, "mlflow.note.content"), (3, TAG + FINAL), (1, TAG + "rounds")]
    found = addresses(store_of(tmp_path / "mlflow.db", runs, tags), 5001)
    assert [*found] == [WORDS[RUNS], WORDS[FINAL]]
    assert found[WORDS[RUNS]] == (
        "http://127.0.0.1:5001/#/experiments/3/runs?viewStateShareKey=runs&compareRunsMode=TABLE"
    )


def test_an_experiment_of_an_earlier_release_has_no_views_to_open(tmp_path: Path) -> None:
    found = addresses(store_of(tmp_path / "mlflow.db", [(3, "active")]), 5001)
    assert found == {"runs": "http://127.0.0.1:5001/#/experiments/3/runs"}


def test_a_copied_stores_artifacts_are_looked_for_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(store, "root", lambda: tmp_path)
    path, before = tmp_path / "mlflow.db", "file:///elsewhere/mlartifacts"
    with sqlite3.connect(path) as database:
        for table, column in sqlite_store.LOCATIONS.items():
            database.execute(f"CREATE TABLE {table} ({column} TEXT)")
            database.execute(f"INSERT INTO {table} VALUES (?)", [before + "/1" * (table == "runs")])
    database.close()
    here = (tmp_path / "mlartifacts").as_uri()
    told = sqlite_store.at_home(path, f"sqlite:///{path}")
    assert told.endswith(f"artifacts are now in {here}, not in {before}")
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT artifact_uri FROM runs").fetchall() == [(f"{here}/1",)]
    database.close()
    assert not sqlite_store.at_home(path, f"sqlite:///{path}")
    assert not sqlite_store.at_home(tmp_path / "other.db", f"sqlite:///{tmp_path / 'other.db'}")


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
        addresses(tmp_path / "mlflow.db", 5000)
