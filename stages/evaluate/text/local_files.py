"""Local files of text and tables: found, decoded and parsed, or an error that says what lies there."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import stat
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.evaluate.text import characters
from stages.files import InputError, shortened

TEXT_SUFFIXES = (".txt", ".raw", ".tokens")
TABLE_SUFFIXES = (".jsonl", ".csv", ".parquet")

_DELIMITERS = ",;\t|"
_MARKS = {  # UTF-32's little-endian mark begins like that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_MAGIC = {
    b"\x1f\x8b": "gzip data; unpack it",
    b"BZh": "bzip2 data; unpack it",
    b"\xfd7zXZ": "xz data; unpack it",
    b"\x28\xb5\x2f\xfd": "Zstandard data; unpack it",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"%PDF": "a PDF; extract its text",
    b"PAR1": "a Parquet table; name it .parquet",
    b"ARROW1": "an Arrow table; write it as .parquet",
}
_LFS = "version https://git-lfs.github.com/spec/"
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclass(frozen=True)
class Table:
    """Rows of a file or of a hub's split, its name for errors, and counts of what is to be told of it."""

    name: str
    rows: Sequence[Mapping[str, Any]]
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def columns(self) -> list[str]:
        """The columns of all rows: a line of JSON need not have the keys of the first."""
        return list(dict.fromkeys(str(name) for row in self.rows for name in row))


def check_file(path: Path, source: str, suffixes: tuple[str, ...]) -> None:
    """Raise InputError unless a regular file with one of the suffixes, in any case, is there."""
    if path.is_file() and path.suffix.lower() in suffixes:
        return
    what = f"a {path.suffix} file" if path.suffix else "a file without a suffix"
    if not path.exists():
        what = "a link to what is not there" if path.is_symlink() else "not there"
    elif not path.is_file():
        mode = path.stat().st_mode
        what = next((kind for is_kind, kind in _KINDS if is_kind(mode)), "no file")
    raise InputError(
        f"{shortened(source)} is {what}; expected a file in {' '.join(suffixes)}. {nearby(path)}"
    )


def nearby(path: Path) -> str:
    """What lies in the folder, or in the folder of the file, for an error's message."""
    folder = next(folder for folder in (path, *path.parents, Path()) if folder.is_dir())
    try:
        names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    except OSError as error:
        return f"{folder} cannot be listed: {error.strerror}"
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return f"In {folder} there is: {shown or 'nothing'}"


def read_decoded(path: Path, source: str, counts: Counter[str]) -> str:
    """A file's text in UTF-8, or in UTF-16 or UTF-32 by its byte order mark, its line ends LF.

    `counts` grows by what was read otherwise than it stands.

    Raises:
        InputError: it cannot be read, or is no text.
    """
    where = f"{source!r}: {path.name}"
    try:
        data = path.read_bytes()  # not read_text, which would change line ends untold
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror}") from error
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        remedy = _magic(data) or "convert it to UTF-8 (iconv -f LATIN1 -t UTF-8 if it is in Latin-1)"
        raise InputError(f"{where} is not {encoding.upper()} (line {line}: {error}); {remedy}") from error
    if text.count("\0") * 100 > len(text):
        remedy = _magic(data) or "it is in UTF-16 without a mark, or no text: convert it to UTF-8"
        raise InputError(f"{where} holds {text.count(chr(0)):,} NUL characters in {len(text):,}; {remedy}")
    if text.startswith(_LFS):
        raise InputError(f"{where} is a pointer of Git LFS and not the file itself; run `git lfs pull`")
    if encoding != "utf-8":
        counts[f"files read as {encoding.upper()} by their byte order mark"] += 1
    return characters.cleaned(text, counts)


def _magic(data: bytes) -> str:
    return next((f"it is {what}" for magic, what in _MAGIC.items() if data.startswith(magic)), "")


def read_table(path: Path, source: str, known: Collection[str]) -> Table:
    """The rows of a .jsonl, .csv or .parquet file.

    `known` column names, in lower case, tell by which character a CSV file is separated.

    Raises:
        InputError: the file is not in the format that its name says.
    """
    counts: Counter[str] = Counter()
    where = f"{source!r}: {path.name}" if path.name != Path(source).name else repr(source)
    if path.suffix.lower() == ".parquet":
        rows = _parquet(path, where)
    elif path.suffix.lower() == ".jsonl":
        rows = _jsonl(read_decoded(path, source, counts), where, counts)
    else:
        rows = _csv(read_decoded(path, source, counts), where, counts, known)
    return Table(where, rows, counts)


def _parquet(path: Path, where: str) -> list[dict[str, Any]]:
    from pyarrow import parquet

    try:
        return list(parquet.read_table(path).to_pylist())
    except Exception as error:  # of a damaged file Arrow raises a dozen kinds
        raise InputError(f"{where} is no readable Parquet file: {error}; write it again") from error


def _jsonl(text: str, where: str, counts: Counter[str]) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), start=1):
        if not line.strip():
            counts["blank lines passed over"] += 1
            continue
        try:
            row = json.loads(line, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: line {number} is not JSON: {error}. Correct that line") from error
        if row is None:
            counts["rows that are null passed over"] += 1
            continue
        if not isinstance(row, dict):
            raise InputError(
                f"{where}: line {number} is {line[:40]!r}; expected an object, one a line, such as "
                '{"text": "…"}'
            )
        rows.append(row)
    return rows


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key stands twice among {', '.join(name for name, _ in pairs)}")
    return found


def _csv(text: str, where: str, counts: Counter[str], known: Collection[str]) -> list[dict[str, Any]]:
    csv.field_size_limit(1 << 30)  # a field may be a whole document
    delimiter = next((d for d in _DELIMITERS if _is_header(_first_row(text, d), known)), _DELIMITERS[0])
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    try:
        rows = list(reader)
    except csv.Error as error:
        raise InputError(
            f"{where} is no readable CSV file: {error} (line {reader.line_num}). Correct that line; a "
            'quote inside a quoted field is written ""'
        ) from error
    if delimiter != _DELIMITERS[0]:
        counts[f"files separated by {delimiter!r}"] += 1
    counts["blank lines passed over"] += sum(not row for row in rows)
    rows = [row for row in rows if row]
    if not rows:
        return []
    header = rows[0]
    if _is_mmlu(header):
        header = ["question", "choice0", "choice1", "choice2", "choice3", "answer"]
    else:
        rows = rows[1:]
    if len(set(header)) < len(header):
        raise InputError(f"{where} has a column twice among {', '.join(header)}; rename one")
    for i, row in enumerate(rows):
        if len(row) != len(header):
            raise InputError(f"{where}: row {i} has {len(row)} fields; expected {len(header)}")
    return [dict(zip(header, row, strict=True)) for row in rows]


def _first_row(text: str, delimiter: str) -> list[str]:
    try:
        return next(filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)), [])
    except csv.Error:
        return []


def _is_header(row: list[str], known: Collection[str]) -> bool:
    return _is_mmlu(row) or any(name.strip().lower() in known for name in row)


def _is_mmlu(row: list[str]) -> bool:
    """Whether a row is a question of MMLU's own release, which has no header."""
    return len(row) == 6 and row[5].strip() in ("A", "B", "C", "D")


def is_null(value: object) -> bool:
    """Whether a cell has no value: null, or the NaN that table libraries write in its place."""
    return value is None or (isinstance(value, float) and math.isnan(value))
