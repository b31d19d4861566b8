"""The short form of the fault suite: a few faults of each kind, none of which does harm."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.small import REPOSITORY


@pytest.mark.timeout(600)  # two minutes; a busy machine takes its time
def test_a_few_faults_of_each_kind_do_no_harm() -> None:
    """In a process of its own, whose forks have what stages import already, and no threads."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.faults", "--short"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "with harm" in done.stdout
