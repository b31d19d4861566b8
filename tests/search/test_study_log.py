"""The studies' file: torn, altered, locked by the dead or not to be written, it never stops a search."""

from __future__ import annotations

import os
import random
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage

from stages.search import study_log
from stages.search.study_log import StudyLog

optuna.logging.set_verbosity(optuna.logging.WARNING)


def ask(path: Path, count: int = 3) -> list[tuple[float, float]]:
    """`count` trials more; the parameter and value of every trial there is then."""
    study = optuna.create_study(storage=JournalStorage(StudyLog(path)), study_name="a", load_if_exists=True)
    study.sampler = optuna.samplers.RandomSampler(seed=len(study.trials))
    for _ in range(count):
        asked = study.ask()
        study.tell(asked, asked.suggest_float("x", 0, 1) / 3)
    return [(t.params["x"], t.values[0]) for t in study.trials if t.values]


def test_what_was_told_is_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "deep" / "studies.log"
    first = ask(path)
    assert len(first) == 3
    assert ask(path, 0) == first
    assert ask(path)[:3] == first
    assert [file.name for file in path.parent.iterdir()] == ["studies.log"]
    assert capsys.readouterr().out == ""


def test_a_torn_end_is_cut_in_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "studies.log"
    told = ask(path)
    content = path.read_bytes()
    for size in random.Random(0).sample(range(len(content)), 25):
        path.write_bytes(content[:size])
        found = ask(path, 0)
        assert told[: len(found)] == found
        assert ask(path, 1)
    assert capsys.readouterr().out == ""


def test_a_byte_that_is_another_begins_the_studies_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "studies.log"
    ask(path)
    content = path.read_bytes()
    rng = random.Random(1)
    for place in rng.sample([i for i, byte in enumerate(content[:-1]) if byte != 10], 25):
        altered = bytearray(content)
        altered[place] = rng.choice([byte for byte in b"0123456789a" if byte != altered[place]])
        path.write_bytes(altered)
        assert ask(path, 0) == []
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(f"{path}, line {content[:place].count(10) + 1} is not as it was written")


def test_a_line_that_is_gone_begins_the_studies_anew(tmp_path: Path):
    path = tmp_path / "studies.log"
    ask(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4] + lines[5:]))
    assert ask(path, 0) == []


@pytest.mark.parametrize("link", [False, True])
def test_the_lock_of_a_dead_process_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: bool):
    monkeypatch.chdir(tmp_path)
    path = Path("data/studies.log")
    told = ask(path)
    lock = path.with_name("studies.log.lock")
    if link:  # that Optuna makes of a relative path leads nowhere
        lock.symlink_to(path)
    else:
        lock.touch()
    assert ask(path)[:3] == told
    assert os.listdir("data") == ["studies.log"]  # noqa: PTH208


def test_a_full_disk_costs_the_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "studies.log"
    write = StudyLog._write

    def full(log: StudyLog, lines: bytes) -> None:
        if path.stat().st_size > 600:
            write(log, lines[:10])  # what there was room for
            raise OSError(28, "No space left on device")
        write(log, lines)

    monkeypatch.setattr(study_log.StudyLog, "_write", full)
    assert len(ask(path, 6)) == 6
    assert capsys.readouterr().out.splitlines() == [
        f"{path} cannot be kept (No space left on device): the search goes on without it"
    ]
    monkeypatch.undo()
    assert len(ask(path, 1)) < 7


def test_a_folder_in_its_place_costs_the_file_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "studies.log").mkdir()
    assert len(ask(tmp_path / "studies.log")) == 3
    assert "the search goes on without it" in capsys.readouterr().out
