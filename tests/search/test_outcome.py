"""The file that passes from search to export."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.files import InputError, read_json, write_json
from stages.search import outcome
from stages.search.outcome import FINALIST, WINNER, Candidate
from tests.small import SMALL, random_architectures

NAMES = ["dense", "uniform", "simple", WINNER, FINALIST, FINALIST]
CANDIDATES = [
    Candidate(
        name,
        architecture,
        architecture.overall_ratio(SMALL),
        {"ppl.wiki": 20.5 + i, "quiz.accuracy": 0.25},
        {"log_ppl.wiki": 3.0 + i / 7},
        3.1 + i / 3,
    )
    for i, (name, architecture) in enumerate(zip(NAMES, random_architectures(SMALL, 6), strict=True))
]


def test_what_is_written_is_read(tmp_path: Path):
    outcome.write(tmp_path / "outcome.json", CANDIDATES)
    assert outcome.read(tmp_path / "outcome.json") == CANDIDATES


def test_a_candidate_is_a_line(tmp_path: Path):
    path = tmp_path / "outcome.json"
    outcome.write(path, CANDIDATES)
    rows = json.loads(path.read_text())["candidates"]
    assert [row["id"] for row in rows] == [c.architecture.id for c in CANDIDATES]
    for row in rows:
        assert sum(json.dumps(row) in line for line in path.read_text().splitlines()) == 1


@pytest.mark.parametrize("names", [[], ["dense", FINALIST], [WINNER, FINALIST, WINNER]])
def test_there_is_exactly_one_winner(tmp_path: Path, names: list[str]):
    found = [dataclasses.replace(c, name=name) for name, c in zip(names, CANDIDATES, strict=False)]
    outcome.write(tmp_path / "outcome.json", found)
    with pytest.raises(InputError, match=r"\(it names . winners\); .*run `dvc repro search`"):
        outcome.read(tmp_path / "outcome.json")


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"outcome\.json is not there"):
        outcome.read(tmp_path / "outcome.json")


def _no_metrics(rows: list[dict[str, Any]]) -> None:
    del rows[2]["metrics"]


def _bad_widths(rows: list[dict[str, Any]]) -> None:
    rows[0]["widths"][1] = [1, 2]


def _no_widths(rows: list[dict[str, Any]]) -> None:
    rows[0]["widths"] = None


def _other_architecture(rows: list[dict[str, Any]]) -> None:
    rows[3]["widths"][1][2] = (rows[3]["widths"][1][2] + 1) % 64


@pytest.mark.parametrize("spoil", [_no_metrics, _bad_widths, _no_widths, _other_architecture])
def test_a_damaged_file_is_refused(tmp_path: Path, spoil: Callable[[list[dict[str, Any]]], None]):
    """Whole, with a checksum of its own, and yet not what is looked for."""
    path = tmp_path / "outcome.json"
    outcome.write(path, CANDIDATES)
    document = read_json(path, outcome.SCHEMA, outcome.VERSION)
    spoil(document["candidates"])
    write_json(path, outcome.SCHEMA, outcome.VERSION, document)
    with pytest.raises(InputError, match=r"outcome\.json is damaged .* run `dvc repro search`"):
        outcome.read(path)


def test_tables_beside_the_outcome_are_compared_with_those_that_were_there(tmp_path: Path):
    path = tmp_path / "outcome.json"
    (tmp_path / "front.csv").write_text("a,b\n1,2.5\n")
    outcome.write(path, CANDIDATES, ["front.csv"])
    outcome.check_tables(path)
    (tmp_path / "front.csv").write_text("a,b\n1,2.4\n")
    with pytest.raises(InputError, match=r"front\.csv is damaged .*run `dvc repro search`"):
        outcome.check_tables(path)
    (tmp_path / "front.csv").unlink()
    with pytest.raises(InputError, match=r"front\.csv is not there; run `dvc repro search`"):
        outcome.check_tables(path)


def test_a_value_that_is_no_number_is_not_written(tmp_path: Path):
    bad = dataclasses.replace(CANDIDATES[0], objective=float("nan"))
    with pytest.raises(ValueError, match="JSON"):
        outcome.write(tmp_path / "outcome.json", [bad])
    assert not (tmp_path / "outcome.json").exists()
