"""Runs `check_stage` in a process of its own, whose forks have no threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small import REPOSITORY


@pytest.mark.timeout(300)  # half a minute; a busy machine takes its time
def test_the_recovered_model_is_exported_and_reported() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts="]
    command.append(str(Path(__file__).with_name("check_stage.py")))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
