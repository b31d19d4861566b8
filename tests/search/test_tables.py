"""The search's tables are read as they were written; the front's are in test_front."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from stages.files import InputError
from stages.search import tables
from stages.search.rounds import Round
from stages.search.studies import Trial
from tests.small import SMALL, random_architectures


def rounds() -> list[Round]:
    architectures = random_architectures(SMALL, 4)
    trials = [
        Trial(number, a, {"log_ppl.a": value}, value)
        for number, (a, value) in enumerate(zip(architectures, (3.5, 1 / 3, 3.6, 3.4), strict=True))
    ]
    measured = {t.architecture: {"log_ppl.a": t.objective + 0.1} for t in trials}
    nobody = cast(Any, None)
    return [Round(n, nobody, trials[2 * n - 2 :][:2], trials[2 * n - 2 :][:1], measured) for n in (1, 2)]


def test_the_history_is_the_best_of_each_round_so_far(tmp_path: Path) -> None:
    tables.write_trials(tmp_path / "trials.csv", rounds())
    assert tables.read_history(tmp_path / "trials.csv") == [3.5, 1 / 3, 3.6, 3.4]


def test_rounds_are_read_and_what_is_unknown_is_left_out(tmp_path: Path) -> None:
    errors = tables.round_errors(rounds(), {"log_ppl.a": 1.0})
    assert errors[0]["bias.log_ppl.a"] == pytest.approx(-0.1)
    errors[0] = errors[0] | {"spearman.objective": 0.5}
    tables.write_rounds(tmp_path / "rounds.csv", errors)
    assert tables.read_rounds(tmp_path / "rounds.csv") == errors


def test_another_table_is_refused_and_the_stage_is_named(tmp_path: Path) -> None:
    tables.write_rounds(tmp_path / "rounds.csv", tables.round_errors(rounds(), {"log_ppl.a": 1.0}))
    with pytest.raises(InputError, match=r"rounds\.csv lacks the column 'name'.*dvc repro search"):
        tables.read_front(tmp_path / "rounds.csv")
