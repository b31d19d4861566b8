"""Runs `check_failed` in a process of its own, whose forks have no threads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.alone import checked


@pytest.mark.timeout(300)  # half a minute; a busy machine takes its time
def test_others_go_on_without_what_failed() -> None:
    assert "5 passed" in checked(Path(__file__).with_name("check_failed.py"))
