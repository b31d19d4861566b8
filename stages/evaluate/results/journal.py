"""The journal: one fsynced JSON line per measured architecture. Killed at any moment, it loses nothing.

A row's key is a digest of everything that decides its value, so a row is never reused where it
does not hold, and a journal may hold rows of many settings and be copied between machines. A row carries
the checksum of its line: one that was altered is never believed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic_core import from_json

from stages import locks
from stages.architecture import Architecture
from stages.files import DamagedError, InputError, atomically, clear, parse_json, sweep, writing

SCHEMA = 2
_SHOWN = 10
"""Lines that are named one by one."""
_TEXTS = ("key", "context", "design", "measured_at", "weights", "failed")
_SEALED = re.compile(rb'(\{"schema": \d+, )"checksum": "([0-9a-f]{16})", ')
_ARCHITECTURE = re.compile(rb'"architecture": "([0-9a-f]+)"')


@dataclass(frozen=True)
class Row:
    """One measured architecture."""

    key: str
    context: str
    """Digest of what was measured on and how; the same for all rows of one evaluation."""
    architecture: Architecture
    design: str
    overall_ratio: float
    metrics: Mapping[str, float]
    samples: Mapping[str, Sequence[float]]
    """What the metrics are means of: a value a window or a question, for errors and paired comparisons."""
    seconds: float
    measured_at: str
    weights: str = ""
    """Digest of weights of its own; empty where a prefix view of the elastic network was measured."""
    failed: str = ""
    """What was no finite number, as "log_ppl.wikitext2 is nan"; then there are no metrics."""

    def to_line(self) -> str:
        content = asdict(self) | {"architecture": self.architecture.id, "widths": self.architecture.to_json()}
        for optional in ("weights", "failed"):
            if not content[optional]:
                del content[optional]
        line = json.dumps({"schema": SCHEMA} | content, allow_nan=False)
        head = f'{{"schema": {SCHEMA}, '
        return f'{head}"checksum": "{_checksum(line.encode())}", {line.removeprefix(head)}'

    @classmethod
    def from_line(cls, line: bytes) -> Row:
        """The row of a line, which must carry the checksum of the rest of it; those of schema 1 had none.

        Raises:
            ValueError: the line is no row, was altered since it was written, or is of another schema.
        """
        sealed = _SEALED.match(line)
        if sealed and sealed[2].decode() != _checksum(sealed[1] + line[sealed.end() :]):
            raise ValueError("it was altered since it was written")
        try:
            # What carries its checksum is what was written here: it needs no strictness, which takes longer.
            content: dict[str, Any] = from_json(line) if sealed else parse_json(line)
            schema = content.pop("schema")
            if type(schema) is int and schema > SCHEMA and sealed:
                raise NewerRowError(schema)
            if schema not in (1, SCHEMA) or (content.pop("checksum", None) is None and schema == SCHEMA):
                raise ValueError(f"its schema is {schema}, and expected is {SCHEMA} with a checksum")
            architecture = Architecture.from_json(content.pop("widths"))
            if content["architecture"] != architecture.id:
                raise ValueError(f"architecture id {content['architecture']} does not match its widths")
            row = cls(**(content | {"architecture": architecture}))
            _check_types(row)
        except (LookupError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None
        return row


class NewerRowError(Exception):
    """A whole row of a schema that a later release wrote."""


def _checksum(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()[:16]


def _check_types(row: Row) -> None:
    """Raise ValueError, TypeError or AttributeError unless texts are texts and numbers finite numbers."""
    if not all(isinstance(getattr(row, name), str) for name in _TEXTS):
        raise ValueError(f"one of {', '.join(_TEXTS)} is no text")
    for values in ((row.overall_ratio, row.seconds), row.metrics.values(), *row.samples.values()):
        if not all(map(math.isfinite, values)):
            raise ValueError("a number is not finite")


@dataclass(frozen=True)
class _Content:
    """What a journal's file holds: its rows by key, their lines, and what is wrong with the others."""

    rows: Mapping[str, Row]
    lines: Sequence[bytes]
    damaged: Sequence[str]

    @property
    def unsealed(self) -> int:
        """The number of rows without a checksum."""
        return sum(_SEALED.match(line) is None for line in self.lines)


def read(path: Path) -> dict[str, Row]:
    """The journal's rows by key, in the order written; the first of equal keys counts.

    A last line without its newline was torn by a kill and is left out.

    Raises:
        InputError: any other line is no row, or was altered since it was written; the message names file
            and line. Whoever opens the `Journal` to measure leaves such lines out.
    """
    content = _read(path)
    if content.damaged:
        stage = path.parent.name.replace("_", "-")
        raise DamagedError(content.damaged[0], f"run `dvc repro {stage}`, which measures it again")
    return dict(content.rows)


def _read(path: Path) -> _Content:
    rows: dict[str, Row] = {}
    lines, damaged = [], []
    for number, line in enumerate(_whole_lines(path), start=1):
        where = f"{path}, line {number}"
        try:
            row = Row.from_line(line.rstrip(b"\r"))
        except NewerRowError as error:
            raise InputError(
                f"{where} has schema {error}; expected at most {SCHEMA}. A later release wrote it: use that "
                "one, or move the file away to measure anew"
            ) from None
        except ValueError as error:
            told = _ARCHITECTURE.search(line)
            of = f" (architecture {told[1].decode()})" if told else ""
            damaged.append(f"{where}{of} is no row of a journal ({error})")
        else:
            lines.append(line)
            rows.setdefault(row.key, row)
    return _Content(rows, lines, damaged)


def _whole_lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); make it readable") from error


class Journal:
    """A journal open for appending, by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Row] = {}
        self._file = contextlib.ExitStack()
        self._descriptor = -1

    def __enter__(self) -> Journal:
        """Open the journal, without the lines that are no rows: each is named, and measured again.

        Raises:
            InputError: another process writes it, a later release wrote it, or it cannot be written.
        """
        self._open()
        try:
            content = _read(self.path)
            self.rows = dict(content.rows)
            if content.unsealed:
                print(
                    f"{self.path}: {content.unsealed} rows are of a release that wrote no checksums, and are "
                    "believed: whether they were altered since cannot be told",
                    flush=True,
                )
            if content.damaged:
                self._leave_out(content)
            else:
                self._drop_torn_line(self._descriptor)
        except BaseException:
            self._file.close()
            raise
        return self

    def _open(self) -> None:
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            sweep(self.path.parent)
            clear(self.path)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._file.callback(os.close, descriptor)
        try:
            locks.lock(descriptor, wait=False)
            self._check_in_place(descriptor)
        except BlockingIOError:
            holder = locks.holder(descriptor)
            self._file.close()
            raise InputError(
                f"{self.path} is being written by another process{holder}; wait for it or stop it "
                "(two writers would repeat each other's work)"
            ) from None
        except BaseException:
            self._file.close()
            raise
        self._descriptor = descriptor

    def _leave_out(self, content: _Content) -> None:
        """Replace the file, in one step, by one of the rows alone; and open that."""
        for problem in content.damaged[:_SHOWN]:
            print(f"{problem}: it is left out, and measured again if it is needed", flush=True)
        if len(content.damaged) > _SHOWN:
            print(f"{self.path}: {len(content.damaged) - _SHOWN} further lines likewise", flush=True)
        with atomically(self.path) as temporary:
            temporary.write_bytes(b"".join(line + b"\n" for line in content.lines))
        self._file.close()
        self._open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, row: Row) -> None:
        """Write the row and wait until it is on the disk.

        Raises:
            InputError: the disk is full or fails, or another file has taken the journal's place;
                the journal holds what it held before.
        """
        line = (row.to_line() + "\n").encode()
        self._check_in_place(self._descriptor)
        size = os.fstat(self._descriptor).st_size
        try:
            written = os.write(self._descriptor, line)
            if written != len(line):
                raise OSError(errno.ENOSPC, f"{written} of {len(line)} bytes were written")
            os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, size)  # half a row would spoil the next one
            raise InputError(
                f"{self.path}: a row could not be written ({error.strerror}); is the disk full? "
                "The rows before it are kept: make room and run `dvc repro`"
            ) from error
        self.rows.setdefault(row.key, row)

    def _check_in_place(self, descriptor: int) -> None:
        try:
            in_place = os.path.samestat(self.path.stat(), os.fstat(descriptor))
        except FileNotFoundError:
            in_place = False
        if not in_place:
            raise InputError(
                f"{self.path} was replaced or removed while it was open (a checkout of git or dvc?); "
                "rows would go into a file without a name. Run `dvc repro` to go on with the one now there"
            )

    def _drop_torn_line(self, descriptor: int) -> None:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            os.ftruncate(descriptor, whole)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows.values())
