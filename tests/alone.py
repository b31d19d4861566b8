"""Checks that run in a process of their own: a fork of one that has threads may wait for ever."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.small import REPOSITORY


def checked(file: Path) -> str:
    """What pytest says of a file that it runs alone, on one thread; it must pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", str(file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
