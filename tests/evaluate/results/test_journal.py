"""The journal: whatever kills its writer, rows that were acknowledged are there, once, and can be read."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.architecture import Architecture, LayerWidth
from stages.evaluate.results import journal
from stages.evaluate.results.journal import Journal, Row
from stages.files import InputError
from tests.evaluate.results.journal_writer import make_row

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "journal.jsonl"


def write(path: Path, *rows: Row) -> None:
    with Journal(path) as opened:
        for row in rows:
            opened.append(row)


def spawn(path: Path, *options: str, layers: int = 2) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "tests.evaluate.results.journal_writer",
        str(path),
        str(layers),
        *options,
    ]
    return subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@contextlib.contextmanager
def writer(path: Path, *options: str, layers: int = 2) -> Iterator[subprocess.Popen[str]]:
    """A writing process that has opened its journal."""
    process = spawn(path, *options, layers=layers)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process
    finally:
        process.kill()
        process.communicate()


finite = st.floats(allow_nan=False, allow_infinity=False)
rows = st.builds(
    Row,
    key=st.text(max_size=20),
    context=st.text(max_size=5),
    architecture=st.lists(st.builds(LayerWidth, *(st.integers(0, 9),) * 3), max_size=4).map(
        lambda widths: Architecture(tuple(widths))
    ),
    design=st.text(max_size=20),
    overall_ratio=finite,
    metrics=st.dictionaries(st.text(max_size=5), finite, max_size=3),
    samples=st.dictionaries(st.text(max_size=5), st.lists(finite, max_size=4), max_size=3),
    seconds=finite,
    measured_at=st.text(max_size=5),
)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(rows, max_size=4, unique_by=lambda row: row.key))
def test_what_is_appended_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    write(path, *rows)
    assert list(journal.read(path).values()) == rows
    assert [row.key for row in journal.read(path).values()] == list(journal.read(path))
    with Journal(path) as opened:
        assert list(opened) == rows


def test_a_line_is_plain_json_of_one_schema(path: Path) -> None:
    row = make_row(5)
    write(path, row)
    (line,) = path.read_text().splitlines()
    content = json.loads(line)
    assert content["schema"] == 2
    assert content["widths"] == [[1, 2, 5], [2, 3, 64]]
    assert content["architecture"] == row.architecture.id
    assert content["metrics"] == row.metrics
    assert len(content) == 12


def test_a_missing_journal_is_an_empty_one(path: Path) -> None:
    assert journal.read(path) == {}
    with Journal(path) as opened:
        assert opened.rows == {}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_written(path: Path, bad: float) -> None:
    write(path, make_row(0))
    before = path.read_bytes()
    with Journal(path) as opened, pytest.raises(ValueError, match="not JSON compliant"):
        opened.append(replace(make_row(1), metrics={"ppl.news": bad}))
    assert path.read_bytes() == before


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(1, 400))
def test_a_torn_last_line_is_dropped_and_written_anew(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    write(path, make_row(0), make_row(1), make_row(2))
    lines = path.read_bytes().splitlines(keepends=True)
    cut = min(cut, len(lines[2]))
    path.write_bytes(b"".join(lines)[:-cut])
    assert list(journal.read(path)) == ["key-000000", "key-000001"]
    with Journal(path) as opened:
        assert list(opened.rows) == ["key-000000", "key-000001"]
        assert path.read_bytes() == b"".join(lines[:2])
        opened.append(make_row(2))
    assert path.read_bytes() == b"".join(lines)


def test_a_torn_line_may_end_within_a_character_or_hold_anything(path: Path) -> None:
    write(path, make_row(0))
    whole = path.read_bytes()
    for torn in (b"\xc3", b"\0" * 4096, b'{"schema": 1}', b"\xff\xfe"):
        path.write_bytes(whole + torn)
        assert list(journal.read(path)) == ["key-000000"]
        with Journal(path):
            pass
        assert path.read_bytes() == whole


def sealed(content: dict[str, object]) -> bytes:
    """The line of a row, or of something else, with the checksum of the rest of it."""
    rest = json.dumps({k: v for k, v in content.items() if k not in ("schema", "checksum")})[1:]
    head = f'{{"schema": {content["schema"]}, '
    checksum = hashlib.sha256((head + rest).encode()).hexdigest()[:16]
    return f'{head}"checksum": "{checksum}", {rest}'.encode()


def spoiled(change: Callable[[dict[str, object]], object]) -> bytes:
    """A row of schema 1, which carries no checksum, after a change."""
    content = json.loads(make_row(1).to_line()) | {"schema": 1}
    del content["checksum"]
    change(content)
    return json.dumps(content).encode()


CORRUPT = {
    "not JSON": (b'{"schema": 1, "key"', "Expecting"),
    "empty": (b"", "Expecting value"),
    "no object": (b"17", "AttributeError"),
    "a list": (b"[1]", "TypeError"),
    "a merge conflict": (b"<<<<<<< HEAD", "Expecting value"),
    "not UTF-8": (b'{"schema": 1, "key": "\xff"}', "can't decode byte"),
    "zeros": (b"\0" * 4096, "Expecting value"),
    "nested too deep": (b"[" * 100_000, "nested too deep"),
    "a number of 5,000 digits": (
        spoiled(lambda row: row.update(key="#")).replace(b'"#"', b"1" * 5000),
        "digits",
    ),
    "no schema": (spoiled(lambda row: row.pop("schema")), "KeyError"),
    "no key": (spoiled(lambda row: row.pop("key")), "missing.*'key'"),
    "an unknown field": (spoiled(lambda row: row.update(speed=3)), "unexpected.*'speed'"),
    "other widths": (spoiled(lambda row: row.update(widths=[[1, 1, 1]])), "does not match its widths"),
    "widths of two numbers": (spoiled(lambda row: row.update(widths=[[1, 1]])), "layer 0 has widths"),
    "negative widths": (spoiled(lambda row: row.update(widths=[[-1, 1, 1]])), "layer 0 has widths"),
    "widths of no list": (spoiled(lambda row: row.update(widths=5)), "TypeError"),
    "a key that is a list": (spoiled(lambda row: row.update(key=[1])), "is no text"),
    "metrics of a number": (spoiled(lambda row: row.update(metrics=3)), "AttributeError"),
    "metrics of text": (spoiled(lambda row: row.update(metrics={"log_ppl.x": "x"})), "TypeError"),
    "samples of text": (spoiled(lambda row: row.update(samples={"log_ppl.x": "6.0"})), "TypeError"),
    "a ratio that is a list": (spoiled(lambda row: row.update(overall_ratio=[1])), "TypeError"),
    "a number beyond floats": (spoiled(lambda row: row.update(seconds=10**400)), "OverflowError"),
    "not a number": (spoiled(lambda row: row.update(seconds=float("nan"))), "NaN is no number"),
    "a key that stands twice": (
        spoiled(lambda _: None).replace(b'"design"', b'"key": "other", "design"'),
        "'key' stands twice",
    ),
    "an altered digit": (make_row(1).to_line().encode().replace(b"0.25", b"0.35"), "it was altered"),
    "another schema's number": (
        make_row(1).to_line().encode().replace(b'"schema": 2', b'"schema": 3'),
        "it was altered",
    ),
    "an earlier schema's number": (
        make_row(1).to_line().encode().replace(b'"schema": 2', b'"schema": 1'),
        "it was altered",
    ),
    "a checksum that is gone": (spoiled(lambda row: row.update(schema=2)), "schema is 2.*with a checksum"),
    "a checksum of another name": (
        make_row(1).to_line().encode().replace(b'"checksum"', b'"checksun"'),
        "schema is 2.*with a checksum",
    ),
}


@pytest.mark.parametrize(("line", "problem"), CORRUPT.values(), ids=CORRUPT)
def test_a_corrupt_line_is_named_and_measured_again(
    path: Path, line: bytes, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(path, make_row(0), make_row(2))
    first, last = path.read_bytes().splitlines(keepends=True)
    content = first + line + b"\n" + last + b'{"torn'
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"journal\.jsonl, line 2.* is no row.*{problem}.*dvc repro data`"):
        journal.read(path)
    assert path.read_bytes() == content, "who reads changes nothing"
    with Journal(path) as opened:
        assert list(opened) == [make_row(0), make_row(2)]
        assert re.search(rf"line 2.* is no row.*{problem}.*measured again", capsys.readouterr().out)
        with pytest.raises(InputError, match="another process"), Journal(path):
            pass
        opened.append(make_row(1))
    assert list(journal.read(path).values()) == [make_row(0), make_row(2), make_row(1)]
    assert [p.name for p in path.parent.iterdir()] == ["journal.jsonl"]
    with Journal(path):
        assert capsys.readouterr().out == ""


def test_of_many_corrupt_lines_the_first_are_named(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(path, make_row(0))
    path.write_bytes(b"odd\n" * 25 + path.read_bytes())
    with Journal(path) as opened:
        assert list(opened) == [make_row(0)]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11
    assert "15 further lines" in lines[-1]


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(rows, min_size=1, max_size=3, unique_by=lambda row: row.key), data=st.data())
def test_a_flipped_bit_anywhere_alters_no_row(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    write(path, *rows)
    raw = bytearray(path.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(raw)
    with Journal(path) as opened:
        assert all(row in rows for row in opened)
        assert len(opened.rows) >= len(rows) - 2  # a line's end that is none costs two rows


def test_rows_of_the_release_before_are_still_read(path: Path) -> None:
    write(path, make_row(0))
    path.write_bytes(spoiled(lambda _: None) + b"\n" + path.read_bytes())
    assert list(journal.read(path).values()) == [make_row(1), make_row(0)]
    with Journal(path) as opened:
        assert list(opened) == [make_row(1), make_row(0)]


def test_line_ends_of_windows_alter_nothing(path: Path) -> None:
    write(path, make_row(0), make_row(1))
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert list(journal.read(path).values()) == [make_row(0), make_row(1)]


def test_rows_of_a_later_release_stop_it_and_stay(path: Path) -> None:
    write(path, make_row(0))
    later = sealed(json.loads(make_row(1).to_line()) | {"schema": 3, "device": "cpu"})
    content = path.read_bytes() + later + b"\n"
    path.write_bytes(content)
    for attempt in (lambda: journal.read(path), lambda: Journal(path).__enter__()):
        with pytest.raises(InputError, match=r"line 2 has schema 3; expected at most 2"):
            attempt()
    assert path.read_bytes() == content


def test_of_equal_keys_the_first_counts(path: Path) -> None:
    other = replace(make_row(1), design="again", metrics={"ppl.wikipedia": 99.0})
    write(path, make_row(0), make_row(1))
    path.write_text(path.read_text() + other.to_line() + "\n" + make_row(0).to_line() + "\n")
    assert list(journal.read(path).values()) == [make_row(0), make_row(1)]
    with Journal(path) as opened:
        assert list(opened) == [make_row(0), make_row(1)]
        opened.append(other)
        assert opened.rows == journal.read(path)


def test_a_line_separator_within_a_row_ends_no_line(path: Path) -> None:
    row = replace(make_row(0), design="a\u2028b\x85c\x0bd\x1ee\nf")
    content = json.loads(row.to_line()) | {"schema": 1}
    del content["checksum"]
    write(path, make_row(1))
    path.write_bytes(json.dumps(content, ensure_ascii=False).encode() + b"\n" + path.read_bytes())
    assert list(journal.read(path).values()) == [row, make_row(1)]


def test_a_second_writer_is_refused(path: Path) -> None:
    with writer(path, "--hold"):
        with (
            pytest.raises(InputError, match=r"journal\.jsonl is being written by another process"),
            Journal(path),
        ):
            pass
        second = spawn(path)
        _, errors = second.communicate(timeout=30)
        assert second.returncode == 1
        assert "is being written by another process" in errors
        if sys.platform == "linux":  # who it is, /proc/locks tells
            assert f"tests.evaluate.results.journal_writer {path}" in errors
        assert journal.read(path) == {}  # reading needs no lock


def test_a_killed_writer_frees_the_lock(path: Path) -> None:
    with writer(path, "--hold") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with Journal(path) as opened:
            opened.append(make_row(0))
    assert list(journal.read(path)) == ["key-000000"]


def test_a_writer_within_the_process_is_refused_too(path: Path) -> None:
    with Journal(path), pytest.raises(InputError, match="another process"), Journal(path):
        pass
    with Journal(path):
        pass


def test_sigkill_at_any_moment_loses_and_repeats_nothing(path: Path) -> None:
    rng = random.Random(time.time_ns())
    acknowledged: list[str] = []
    for attempt in range(16):
        process = spawn(path, layers=400)  # rows of several kilobytes
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        first = process.stdout.readline() if attempt % 2 else ""  # on a busy machine too, some get this far
        time.sleep(rng.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        printed, _ = process.communicate()
        acknowledged += [line for line in (first + printed).split("\n")[:-1] if line]
        found = journal.read(path)
        assert set(acknowledged) <= found.keys()
    assert len(acknowledged) >= 8
    assert len(acknowledged) == len(set(acknowledged))
    with Journal(path):
        pass
    keys = [json.loads(line)["key"] for line in path.read_bytes().split(b"\n")[:-1]]
    assert len(keys) == len(set(keys))
    assert len(keys) - len(acknowledged) <= 15  # written, and killed before it could say so
    assert all(row == make_row(int(row.key[4:]), layers=400) for row in journal.read(path).values())


def test_a_full_disk_is_said_and_costs_no_row(path: Path) -> None:
    with writer(path, "--limit", "3000") as process:
        printed, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "journal.jsonl" in errors.strip().split("\n")[-1]
    assert "full" in errors.strip().split("\n")[-1]
    acknowledged = printed.split()
    assert len(acknowledged) >= 4
    assert list(journal.read(path)) == acknowledged
    with Journal(path) as opened:
        assert list(opened.rows) == acknowledged
        opened.append(make_row(len(acknowledged)))
    assert list(journal.read(path).values()) == [make_row(n) for n in range(len(acknowledged) + 1)]


@pytest.mark.parametrize("part", [0, 1, 100, -1])
def test_a_row_that_was_half_written_spoils_no_later_row(
    path: Path, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever frees the disk and goes on in the same process must not glue a row to half a row."""
    real = os.write

    def short(descriptor: int, data: bytes) -> int:
        if part == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data[:part])

    with Journal(path) as opened:
        opened.append(make_row(0))
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", short)
            with pytest.raises(InputError, match=r"journal\.jsonl.*full"):
                opened.append(make_row(1))
        assert list(opened.rows) == ["key-000000"]
        opened.append(make_row(2))
    assert list(journal.read(path).values()) == [make_row(0), make_row(2)]


def test_a_row_is_not_acknowledged_before_it_is_on_the_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with Journal(path) as opened:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fails)
            with pytest.raises(InputError, match=r"journal\.jsonl.*Input/output"):
                opened.append(make_row(0))
        assert opened.rows == {}
        opened.append(make_row(0))
    assert path.read_text() == make_row(0).to_line() + "\n"


@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_a_journal_replaced_under_its_writer_stops_it(path: Path, how: str) -> None:
    """`git checkout` or `dvc checkout` meanwhile: rows would go on into a file that has no name."""
    with Journal(path) as opened:
        opened.append(make_row(0))
        copy = path.with_name("copy")
        copy.write_bytes(path.read_bytes())
        if how == "replaced":
            copy.replace(path)
        else:
            path.unlink()
        with pytest.raises(InputError, match=r"journal\.jsonl was replaced or removed"):
            opened.append(make_row(1))
        assert list(opened.rows) == ["key-000000"]


def test_rows_without_checksums_are_said_to_be_believed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(make_row(1).to_line()) | {"schema": 1}
    del content["checksum"]
    (tmp_path / "journal").write_text(f"{json.dumps(content)}\n{make_row(2).to_line()}\n")
    with Journal(tmp_path / "journal") as journal:
        assert len(journal.rows) == 2
    assert "journal: 1 rows are of a release that wrote no checksums" in capsys.readouterr().out
