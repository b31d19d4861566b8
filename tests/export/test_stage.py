"""The stage `export` reads all that its report will show before anything is made."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from stages.evaluate.results import division
from stages.export import stage
from stages.files import InputError
from stages.sample import designs
from stages.search import course, explain, narrowed_space, outcome, tables
from stages.train_predictor import results
from tests.small import COMMITTED

SHOWN = [
    (outcome, "check_tables"), (outcome, "read"), (outcome, "read_steps"), (division, "read"),
    (narrowed_space, "read"), (course, "read"), (explain, "read"),
    (tables, "read_front"), (tables, "read_history"), (tables, "read_rounds"),
    (results, "read_errors"), (results, "read_forecasts"), (results, "read_judged"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "reader"), SHOWN, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_a_damaged_file_of_the_report_is_told_before_the_work(
    module: Any, reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise InputError("damaged")

    def work(*_: Any) -> None:
        pytest.fail("work has begun")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(designs, "read", lambda _: (None, []))
    for each, name in SHOWN:
        monkeypatch.setattr(each, name, lambda *_: None)
    monkeypatch.setattr(module, reader, refuse)
    monkeypatch.setattr(stage, "keys", work)
    with pytest.raises(InputError, match="damaged"):
        stage.run(COMMITTED, argparse.Namespace(no_tracking=True))
