"""Runs `check_stage` in a process of its own, whose forks have no threads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.alone import checked


@pytest.mark.timeout(300)  # half a minute; a busy machine takes its time
def test_the_recovered_model_is_exported_and_reported() -> None:
    assert "1 passed" in checked(Path(__file__).with_name("check_stage.py"))
