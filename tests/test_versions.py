"""What is kept across runs: a changed formula is noticed, and what computes nothing moves no key."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import golden
from tests.small import REPOSITORY


def test_values_are_as_their_versions_say(tmp_path: Path) -> None:
    assert not golden.problems(tmp_path), "\n".join(golden.problems(tmp_path))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The code, to be changed."""
    kept = shutil.ignore_patterns("__pycache__")
    for folder in ("stages", "tests"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=kept)
    for file in REPOSITORY.glob("params*.yaml"):
        shutil.copy(file, tmp_path)
    return tmp_path


def change(copy: Path, file: str, old: str, new: str) -> None:
    path = copy / file
    content = path.read_text(encoding="utf-8")
    assert content.count(old) == 1, f"{file} holds {old!r} {content.count(old)} times"
    path.write_text(content.replace(old, new), encoding="utf-8")


def run(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.golden", *arguments],
        cwd=copy, env=os.environ | {"PYTHONPATH": str(copy)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


CURVATURE = "stages/evaluate/calibrate/curvature.py"


def test_a_changed_formula_is_noticed_and_its_version_named(copy: Path) -> None:
    """The old curves would stay in use for every predictor and search after."""
    change(copy, CURVATURE, "(option.ratio, 0.5 * float(total)", "(option.ratio, 5.0 * float(total)")
    done = run(copy)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("curves is computed otherwise than before, under the same version")
    assert f"raise VERSION in {CURVATURE}" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    change(copy, CURVATURE, "VERSION = 3", "VERSION = 4")
    done = run(copy)
    assert "curves has the version 4, and golden.json 3; run `python -m tests.golden --update`" in done.stdout
    assert run(copy, "--update").returncode == 0
    assert run(copy).returncode == 0


def test_a_changed_latency_table_is_noticed(copy: Path) -> None:
    change(copy, "stages/sample/latency.py", "(value - taken[without]) / layers", "(value - taken[without])")
    assert "latency table is computed otherwise than before" in run(copy).stdout


def test_what_computes_nothing_moves_no_key(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The unit of a progress bar, a docstring, a renamed variable: no journal is measured again."""
    before = golden.Bench(tmp_path_factory.mktemp("model")).evaluator.digest
    change(copy, "stages/evaluate/measure/run.py", 'unit="architecture"', 'unit="model"')
    change(copy, CURVATURE, "One backward pass over the calibration text.", "A backward pass over it.")
    evaluator = copy / "stages/evaluate/measure/evaluator.py"
    evaluator.write_text(evaluator.read_text().replace("results", "found_of_all"), encoding="utf-8")
    assert run(copy, "--context").stdout.strip() == before
