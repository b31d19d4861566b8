"""Versioned JSON: whole or not at all, checked on reading, readable by people."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.files import InputError, atomically, cache_folder, located, read_json, write_json, write_text

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)


@settings(deadline=None, max_examples=60)
@given(content=st.dictionaries(st.text(), VALUES, max_size=4))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]):
    path = tmp_path_factory.mktemp("json") / "deep" / "file.json"
    content = {k: v for k, v in content.items() if k not in ("schema", "version", "checksum")}
    write_json(path, "test", 3, content)
    assert read_json(path, "test", 3) == {"schema": "test", "version": 3, **content}


def test_rows_stand_one_a_line(tmp_path: Path):
    rows = [{"id": name, "widths": [[1, 2], [3, 4]], "äöü": None} for name in "abc"]
    path = tmp_path / "file.json"
    write_json(path, "test", 1, {"summary": {"x": {"n": 1}, "y": [1, 2]}, "rows": rows})
    lines = path.read_text(encoding="utf-8").splitlines()
    for row in rows:
        assert sum(json.dumps(row, ensure_ascii=False) in line for line in lines) == 1
    assert any(line.strip() == '"y": [1, 2]' for line in lines)
    assert '"schema": "test"' in lines[1]
    assert path.read_text(encoding="utf-8").endswith("}\n")


@pytest.mark.parametrize(
    "content",
    [
        {"value": float("nan")},
        {"inner": {"value": float("inf")}},
        {"values": [1.0, float("-inf")]},
        {"rows": [{"value": 1.0}, {"value": float("nan")}]},
        {"outer": {"rows": [{"values": [float("nan")]}]}},
    ],
)
def test_nan_is_refused_and_nothing_is_written(tmp_path: Path, content: dict[str, Any]):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file.json", "test", 1, content)
    assert list(tmp_path.iterdir()) == []


def test_a_crash_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def crash(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new, but cut short")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_readers_never_see_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Until the last moment the old file is there, whole, and the new content is already on disk."""
    path = tmp_path / "file.txt"
    write_text(path, "old")
    seen = []
    real = os.fsync

    def look(handle: int) -> None:
        real(handle)
        seen.append((path.read_text(), sorted(p.read_text() for p in tmp_path.iterdir())))

    monkeypatch.setattr(os, "fsync", look)
    write_text(path, "new")
    assert seen == [("old", ["new", "old"])]
    assert path.read_text() == "new"


def test_others_may_read_the_file(tmp_path: Path):
    write_text(tmp_path / "file.txt", "x")
    assert (tmp_path / "file.txt").stat().st_mode & 0o777 == 0o644


def test_a_missing_file_says_how_to_make_it(tmp_path: Path):
    with pytest.raises(InputError, match=r"gone\.json is not there; run `dvc repro`"):
        read_json(tmp_path / "gone.json", "test", 1)


@pytest.mark.parametrize("raw", [b'{"schema": ', b"", b"\xff\xfe\x00"])
def test_a_damaged_file_is_named(tmp_path: Path, raw: bytes):
    (tmp_path / "file.json").write_bytes(raw)
    with pytest.raises(InputError, match=r"file\.json is not valid JSON .* delete it"):
        read_json(tmp_path / "file.json", "test", 1)


@pytest.mark.parametrize(
    "text", ['{"schema": "test", "version": 2}', '{"schema": "other", "version": 1}', "{}", "[1]", "null"]
)
def test_another_schema_or_version_is_refused(tmp_path: Path, text: str):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(InputError, match=r"expected \('test', 1\)"):
        read_json(tmp_path / "file.json", "test", 1)


def test_a_file_is_replaced_whole_and_with_ordinary_permissions(tmp_path: Path):
    path, plain = tmp_path / "deep" / "weights", tmp_path / "plain"
    with atomically(path) as temporary:
        temporary.write_bytes(b"first")
        assert not path.exists()
    plain.write_text("")
    assert path.read_bytes() == b"first"
    assert path.stat().st_mode == plain.stat().st_mode


def test_an_error_leaves_the_file_that_was_there_and_nothing_else(tmp_path: Path):
    path = tmp_path / "weights"
    path.write_bytes(b"first")

    def fail() -> None:
        with atomically(path) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"PRUNECAST_CACHE": "/somewhere"}, "/somewhere"),
        ({"PRUNECAST_CACHE": "own"}, "{here}/own"),
        ({"PRUNECAST_CACHE": "~/own"}, "/a/home/own"),
        ({"PRUNECAST_CACHE": ""}, "/a/home/.cache/prunecast"),
        ({"XDG_CACHE_HOME": "~/xdg"}, "/a/home/xdg/prunecast"),
        ({"XDG_CACHE_HOME": "xdg"}, "{here}/xdg/prunecast"),
        ({"XDG_CACHE_HOME": "", "PRUNECAST_CACHE": ""}, "/a/home/.cache/prunecast"),
    ],
    ids=str,
)
def test_the_cache_is_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], folder: str
):
    _environment(tmp_path, monkeypatch, variables)
    assert str(cache_folder()) == folder.format(here=tmp_path)


@pytest.mark.parametrize("name", ["PRUNECAST_CACHE", "XDG_CACHE_HOME"])
@pytest.mark.parametrize("value", ["~nobody-is-called-so/x", "x" * 5000])
def test_a_cache_that_cannot_be_anywhere_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
):
    _environment(tmp_path, monkeypatch, {name: value})
    with pytest.raises(InputError, match=r"the environment variable PRUNECAST_CACHE.* cannot be looked for"):
        cache_folder()


def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("PRUNECAST_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/a/home", **variables}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("source", ["~nobody-is-called-so/x", "x" * 5000, "nul\0.py"])
def test_names_that_no_file_can_have(source: str):
    with pytest.raises(InputError, match=r"^here: .* cannot be looked for: "):
        located(source, key="here: ")
