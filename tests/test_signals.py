"""Signals: nothing before a stage begins, the work in hand after that, and no traceback ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.small import REPOSITORY

STAGE = """
import sys, time
from stages import stage
from stages.signals import deferred

def plain(*_):
    print("ready", flush=True)
    while True:
        time.sleep(0.01)

def row(*_):
    try:
        with deferred("the architecture in hand"):
            print("ready", flush=True)
            time.sleep(0.6)
            print("measured", flush=True)
        print("another", flush=True)
    except KeyboardInterrupt as stopped:
        stopped.add_note("evaluate: 1 of 2")
        raise

def wrapped(*_):
    try:
        plain()
    except BaseException as error:
        raise RuntimeError("what a package makes of it") from error

def lost(*_):
    class Odd:
        def __del__(self):
            plain()
    Odd()
    plain()

def last(*_):
    print("ready", flush=True)
    from stages import signals
    before = signals.end

    def end():
        before()
        signals.signal.raise_signal(signals.signal.SIGTERM)

    signals.end = end

stage.main("evaluate", sys.argv.pop() if sys.argv[-1].startswith("slow") else globals()[sys.argv.pop()])
"""
ANSWERS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


def start(folder: Path, body: str, ignored: int | None = None) -> subprocess.Popen[str]:
    def as_asked() -> None:
        """A shell's background jobs, and what they start, ignore SIGINT: here only what is asked for is."""
        for number, _ in ANSWERS:
            signal.signal(number, signal.SIG_IGN if number == ignored else signal.SIG_DFL)

    (folder / "stage.py").write_text(STAGE)
    (folder / "slow.py").write_text("import time; print('ready', flush=True); time.sleep(30)")
    process = subprocess.Popen(
        [sys.executable, "stage.py", "--params", str(REPOSITORY / "params.yaml"), body],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=as_asked,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def ended(process: subprocess.Popen[str]) -> tuple[int, str, list[str]]:
    out, err = process.communicate(timeout=30)
    assert "Traceback" not in err
    return process.returncode, out, [line for line in err.splitlines() if line]


@pytest.mark.parametrize(("number", "code"), ANSWERS)
def test_a_signal_stops_a_stage_at_once_with_one_line(tmp_path: Path, number: int, code: int):
    process = start(tmp_path, "plain")
    process.send_signal(number)
    name = signal.Signals(number).name
    kept = "what was finished is kept: `dvc repro` goes on from there"
    assert ended(process) == (code, "", [f"prunecast evaluate: interrupted by {name}; {kept}"])


def test_a_signal_within_imports_has_its_line_too(tmp_path: Path):
    process = start(tmp_path, "slow:run")
    process.send_signal(signal.SIGTERM)
    again = "before it began: `dvc repro` goes on from there"
    assert ended(process) == (143, "", [f"prunecast evaluate: interrupted by SIGTERM; {again}"])


@pytest.mark.parametrize(("number", "code"), ANSWERS)
def test_what_is_in_hand_is_finished_first(tmp_path: Path, number: int, code: int):
    process = start(tmp_path, "row")
    process.send_signal(number)
    found, out, lines = ended(process)
    assert (found, out) == (code, "measured\n")
    assert len(lines) == 2
    assert lines[0].endswith("the architecture in hand is finished first; once more stops at once")
    assert "evaluate: 1 of 2; what was finished is kept" in lines[1]


def test_a_second_signal_stops_what_is_in_hand(tmp_path: Path):
    process = start(tmp_path, "row")
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert ended(process)[:2] == (130, "")


@pytest.mark.parametrize("body", ["wrapped", "lost"])
def test_a_signal_that_a_package_swallows_still_stops(tmp_path: Path, body: str):
    process = start(tmp_path, body)
    process.send_signal(signal.SIGTERM)
    found, _, lines = ended(process)
    assert found == 143
    assert lines[-1].startswith("prunecast evaluate: interrupted by SIGTERM")


def test_a_signal_after_all_is_done_ends_it_without_a_word(tmp_path: Path):
    """It would be raised where nothing answers it any more."""
    assert ended(start(tmp_path, "last")) == (143, "", [])


def test_what_nohup_ignores_stays_ignored(tmp_path: Path):
    process = start(tmp_path, "row", ignored=signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    assert ended(process) == (0, "measured\nanother\n", [])
