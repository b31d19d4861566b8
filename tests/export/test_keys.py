"""What decides a part of an export changes its key, and nothing else does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stages.config.recovery import RecoverySection
from stages.evaluate.results import context
from stages.evaluate.results.context import Context
from stages.evaluate.results.journal import Journal
from stages.export import keys
from stages.export.results.record import ExportPart
from stages.sample.designs import BASELINES
from stages.search.outcome import WINNER, Candidate
from tests.evaluate.results.journal_writer import make_row
from tests.small import COMMITTED, SMALL, random_architectures

ALL = set(ExportPart)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The files that keys are made of, in a folder, and a model beside it."""
    folder = tmp_path / "data"
    for name in (
        "evaluate/importance.safetensors",
        "evaluate/conversations.json",
        "evaluate/division.json",
        "sample/architectures.json",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    content = {"measurement": {"question_formats": ["likelihood"]}}
    context.write(folder / "search" / "context.json", Context("c0ffee", content))
    with Journal(folder / "search" / "journal.jsonl") as journal:
        journal.append(make_row(16))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").write_text("weights")
    return folder


def candidates(seed: int = 0) -> list[Candidate]:
    made = random_architectures(SMALL, 4, seed)
    return [Candidate(name, a, 0.2, {}, {}, 1.0) for name, a in zip((*BASELINES, WINNER), made, strict=True)]


def keys_of(data: Path, found: list[Candidate], **sections: dict[str, Any]) -> dict[ExportPart, str]:
    params = COMMITTED.model_copy(
        update={
            name: getattr(COMMITTED, name).model_copy(update=changes)
            for name, changes in ({"model": {"source": str(data.parent / "model")}} | sections).items()
        }
    )
    return keys.keys(params, data, found)


def recovery(**changes: Any) -> RecoverySection:
    return COMMITTED.export.recovery.model_copy(update=changes)


def changed(before: dict[ExportPart, str], after: dict[ExportPart, str]) -> set[ExportPart]:
    return {part for part in ExportPart if before[part] != after[part]}


@pytest.mark.parametrize(
    ("section", "changes", "parts"),
    [
        ("export", {"dtype": "float16"}, ALL),
        ("export", {"gguf": []}, ALL),
        ("export", {"proof": None}, {ExportPart.PROOF}),
        ("export", {"answers": None}, {ExportPart.TABLE}),
        ("export", {"alternatives": None}, {ExportPart.TABLE}),
        ("search", {"repair_again": False}, ALL),
        ("export", {"recovery": recovery(method="distill")}, ALL),
        ("export", {"recovery": recovery(method="none", tokens=7, baselines=True)}, set()),
        ("search", {"trials": 7}, set()),
        ("evaluate", {"importance": "random"}, ALL),
        ("evaluate", {"prefix_cache_mb": 1, "cache_mb": 1}, set()),
        ("budget", {"size_bytes": 10**9}, {ExportPart.TABLE}),
        ("tracking", {"experiment": "another"}, set()),
    ],
)
def test_a_parameter_decides_the_parts_that_it_names(
    data: Path, section: str, changes: dict[str, Any], parts: set[ExportPart]
) -> None:
    before = keys_of(data, candidates())
    assert before == keys_of(data, candidates())
    assert changed(before, keys_of(data, candidates(), **{section: changes})) == parts


@pytest.mark.parametrize(
    ("file", "parts"),
    [
        ("model/model.safetensors", ALL),
        ("data/evaluate/importance.safetensors", ALL),
        ("data/evaluate/division.json", ALL),
        ("data/sample/architectures.json", {ExportPart.TABLE}),
        ("data/evaluate/conversations.json", {ExportPart.TABLE}),
    ],
)
def test_a_file_decides_the_parts_that_are_made_of_it(data: Path, file: str, parts: set[ExportPart]) -> None:
    before = keys_of(data, candidates())
    (data.parent / file).write_text("other")
    assert changed(before, keys_of(data, candidates())) == parts


def test_winner_context_and_versions_decide(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys_of(data, candidates())
    assert changed(before, keys_of(data, candidates(seed=1))) == ALL
    monkeypatch.setitem(keys.VERSIONS, ExportPart.PROOF, 2)
    assert changed(before, keys_of(data, candidates())) == {ExportPart.PROOF}
    monkeypatch.setitem(keys.VERSIONS, ExportPart.PROOF, 1)
    content = {"measurement": {"question_formats": ["likelihood"]}}
    context.write(data / "search" / "context.json", Context("decaf", content))
    assert changed(before, keys_of(data, candidates())) == ALL
