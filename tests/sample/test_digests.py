"""Digests of large files: noted with the files' status, and never believed of a file that was changed."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from stages.sample import digests
from stages.sample.digests import file_digest, noted_digest


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file old enough to be noted."""
    monkeypatch.setenv("PRUNECAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_SETTLED_NS", -(10**9))
    digests._read.cache_clear()
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    return path


def forget() -> None:
    """What another process knows is what was noted."""
    digests._read.cache_clear()


def test_a_file_is_read_once(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = file_digest(file)
    assert found == hashlib.sha256(b"weights").hexdigest()
    assert len(list((tmp_path / "cache" / "digests").iterdir())) == 1
    forget()
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert noted_digest(file) == found


@pytest.mark.parametrize("how", ["written", "replaced", "replaced by a copy with its times"])
def test_a_changed_file_is_read_again(file: Path, tmp_path: Path, how: str) -> None:
    noted_digest(file)
    before = file.stat()
    if how == "written":
        file.write_bytes(b"WEIGHTS")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        other = tmp_path / "other"
        other.write_bytes(b"WEIGHTS")
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        if how == "replaced":
            other.replace(file)
        else:
            shutil.copy2(other, file)
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    forget()
    assert noted_digest(file) == hashlib.sha256(b"WEIGHTS").hexdigest()


def test_a_damaged_note_is_done_without(file: Path, tmp_path: Path) -> None:
    found = noted_digest(file)
    (note,) = (tmp_path / "cache" / "digests").iterdir()
    for damaged in (b"", b"{}", b"\xff", note.read_bytes().replace(b"version", b"vision")):
        note.write_bytes(damaged)
        forget()
        assert noted_digest(file) == found


def test_a_file_just_written_is_not_noted(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its next change could bear the same time."""
    monkeypatch.setattr(digests, "_SETTLED_NS", 2 * 10**9)
    noted_digest(file)
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_done_without(file: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    assert noted_digest(file) == hashlib.sha256(b"weights").hexdigest()
