"""How far a run is, by its plan, corrected by what its stages took."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages import ahead

PLAN = {"sample": 5.0, "evaluate": 300.0, "build-dataset": 5.0, "train-predictor": 10.0, "search": 200.0}


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    """What the clock shows; the run began at 1,000."""
    shown = [1000.0]
    monkeypatch.setattr("stages.ahead.time.time", lambda: shown[0])
    for name, value in ahead.environment(PLAN | {"export": 100.0}, tmp_path / "notes").items():
        monkeypatch.setenv(name, value)
    return shown


def test_before_anything_the_plan_is_told(now: list[float]) -> None:
    assert ahead.told("sample") == "stage 1 of 6, sample: about 10 min left"
    now[0] += 40  # too little to learn from
    assert ahead.told("evaluate") == "stage 2 of 6, evaluate: about 10 min left"


def test_a_slow_machine_corrects_it(now: list[float]) -> None:
    for stage in ahead.STAGES[:4]:
        ahead.told(stage)
    now[0] += 640  # of 320 that were planned
    assert ahead.told("search") == "stage 5 of 6, search: about 10 min left"


def test_what_lay_in_the_cache_corrects_nothing(now: list[float]) -> None:
    now[0] += 70
    assert ahead.told("search") == "stage 5 of 6, search: about 5 min left"
    now[0] += 400  # of the 200 that were planned for the one stage that ran
    assert ahead.told("export") == "stage 6 of 6, export: about 4 min left"


def test_a_stage_that_is_run_alone_knows_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ahead.VARIABLE, raising=False)
    assert ahead.told("search") == ""


def test_a_command_that_is_no_stage_is_told_nothing(now: list[float]) -> None:
    assert ahead.told("proof") == ""
