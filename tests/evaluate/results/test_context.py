"""The context is read as it was written, or an error says what to run."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.evaluate.results import context, division
from stages.evaluate.results.context import Context
from stages.files import InputError, write_json


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "context.json"
    made = Context("c0ffee", {"weights": "abc", "measurement": {"question_formats": ["letter"]}})
    context.write(path, made)
    found = context.read(path)
    assert found == made
    assert found.question_formats == ["letter"]
    context.write(path, found)
    assert context.read(path) == made


def test_a_damaged_file_says_which_stage_to_run(tmp_path: Path) -> None:
    path = tmp_path / "context.json"
    write_json(path, context.SCHEMA, context.VERSION, {"digest": "c0ffee"})
    with pytest.raises(InputError, match=r"is damaged \('measurement'\); .*run `dvc repro evaluate`"):
        context.read(path)
    write_json(path, division.SCHEMA, division.VERSION, {"news": {"source": "a"}})
    with pytest.raises(InputError, match="run `dvc repro evaluate`"):
        division.read(path)


def test_other_weights_than_those_measured_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "context.json"
    context.write(path, Context("c0ffee", {"weights": "a" * 64, "measurement": {"question_formats": []}}))
    context.require_weights(path, "a" * 64, "some/model")
    with pytest.raises(InputError, match=r"holds other weights.*\(SHA-256 b{16} today, a{16} then"):
        context.require_weights(path, "b" * 64, "some/model")
