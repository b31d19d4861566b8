"""Another architecture than the winner is found by its id; the pipeline's test exports one."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.export import by_id
from stages.files import InputError
from stages.search import outcome
from stages.search.outcome import FRONT, WINNER, Candidate
from tests.small import COMMITTED, SMALL, random_architectures

CANDIDATES = [
    Candidate(name, a, a.overall_ratio(SMALL), {}, {}, 3.0)
    for name, a in zip((WINNER, FRONT), random_architectures(SMALL, 2), strict=True)
]


def test_it_is_found_by_its_id():
    for candidate in CANDIDATES:
        assert by_id.find(CANDIDATES, candidate.architecture.id) == candidate


def test_an_unknown_id_is_answered_with_those_that_there_are():
    with pytest.raises(InputError, match="no architecture 0123456789ab") as found:
        by_id.find(CANDIDATES, "0123456789ab")
    for c in CANDIDATES:
        assert f"{c.architecture.id} ({c.name}, {c.overall_ratio:.3f})" in str(found.value)


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And no model is loaded before that is known."""
    outcome.write(tmp_path / "search" / "outcome.json", CANDIDATES)
    monkeypatch.setattr(by_id, "DATA", tmp_path)
    monkeypatch.setattr(by_id, "open_workbench", lambda *_: pytest.fail("a model was loaded"))
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="mine is there already"):
        by_id.run(COMMITTED, CANDIDATES[1].architecture.id, tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []
