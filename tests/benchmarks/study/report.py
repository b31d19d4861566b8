"""The study's tables and pictures, from its rows."""

from __future__ import annotations

from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def write(results: Path) -> None:
    raise NotImplementedError
