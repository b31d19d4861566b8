"""How stages end: 2 and one clear line for bad input, 130 when interrupted; and what they import."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages import signals, stage
from stages.config.params import Params
from stages.files import InputError
from tests.small import REPOSITORY


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """A stage leaves signals to the system when it has ended; pytest wants its own again."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signals.PARENT_DIED)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def run_sample(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stages.sample", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_bad_params_exit_with_2_and_one_line(tmp_path: Path):
    text = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    bad = text.replace("overall_ratio: 0.25 ", "overall_ratio: 1.25 ")
    assert bad != text
    (tmp_path / "other.yaml").write_text(bad, encoding="utf-8")
    done = run_sample(tmp_path, "--params", "other.yaml")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "prunecast sample: other.yaml: budget.overall_ratio is 1.25; expected less than 1"
    ]
    assert not (tmp_path / "data").exists()


def test_no_params_file_exits_with_2_and_one_line(tmp_path: Path):
    done = run_sample(tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("prunecast sample: params.yaml is not there")


def main_with(
    monkeypatch: pytest.MonkeyPatch, error: BaseException | None, *arguments: str
) -> argparse.Namespace:
    seen: list[argparse.Namespace] = []

    def body(_: Params, found: argparse.Namespace) -> None:
        seen.append(found)
        if error is not None:
            raise error

    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.setattr(sys, "argv", ["stage", "--params", str(REPOSITORY / "params.yaml"), *arguments])
    stage.main("build-dataset", body)
    return seen[0]


def test_interrupted_exits_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main_with(monkeypatch, KeyboardInterrupt())
    assert caught.value.code == 130
    assert capsys.readouterr().err == (
        "prunecast build-dataset: interrupted by SIGINT; what was finished is kept: `dvc repro` goes on from "
        "there\n"
    )


def test_bad_input_of_a_body_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as caught:
        main_with(monkeypatch, InputError("the file is odd"))
    assert caught.value.code == 2
    assert capsys.readouterr().err == "prunecast build-dataset: the file is odd\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ZeroDivisionError):
        main_with(monkeypatch, ZeroDivisionError())


def test_tracking_is_on_unless_switched_off(monkeypatch: pytest.MonkeyPatch):
    assert main_with(monkeypatch, None).no_tracking is False
    assert main_with(monkeypatch, None, "--no-tracking").no_tracking is True


def test_light_stages_import_neither_torch_nor_mlflow():
    """They must start in under two seconds; the time is printed, for other work slows this machine."""
    for name in ("sample", "build_dataset", "train_predictor"):
        code = (
            "import sys, time; start = time.perf_counter();"
            f"import stages.{name}.stage;"
            "print(f'{time.perf_counter() - start:.2f} s');"
            "heavy = sorted({'torch', 'transformers', 'mlflow', 'datasets', 'optuna'} & set(sys.modules));"
            "print(*heavy)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        seconds, heavy = done.stdout.split("\n")[:2]
        print(f"stages.{name} imports in {seconds}")
        assert heavy == "", f"stages.{name} imports {heavy}"
