"""The journal: one fsynced JSON line per measured architecture. Killed at any moment, it loses nothing.

A row's key is a digest of everything that decides its value, so a row is never reused where it
does not hold, and a journal may hold rows of many settings and be copied between machines.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from stages.architecture import Architecture
from stages.files import InputError

SCHEMA = 1


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

    def to_line(self) -> str:
        content = asdict(self) | {"architecture": self.architecture.id, "widths": self.architecture.to_json()}
        if not self.weights:
            del content["weights"]
        return json.dumps({"schema": SCHEMA} | content, allow_nan=False)

    @classmethod
    def from_line(cls, line: str) -> Row:
        content: dict[str, Any] = json.loads(line)
        schema = content.pop("schema")
        if schema != SCHEMA:
            raise ValueError(f"schema {schema}; expected {SCHEMA}")
        architecture = Architecture.from_json(content.pop("widths"))
        if content["architecture"] != architecture.id:
            raise ValueError(f"architecture id {content['architecture']} does not match its widths")
        return cls(**(content | {"architecture": architecture}))


def read(path: Path) -> dict[str, Row]:
    """The journal's rows by key, in the order written; the first of equal keys counts.

    A last line without its newline was torn by a kill and is left out.

    Raises:
        InputError: any other line cannot be read; the message names file and line.
    """
    rows: dict[str, Row] = {}
    for number, line in enumerate(_whole_lines(path), start=1):
        try:
            row = Row.from_line(line.decode())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path}, line {number} is not a journal row ({type(error).__name__}: {error}). "
                "Nothing was changed. Delete that line to measure its architecture again, "
                "or restore the file with `dvc checkout`"
            ) from error
        rows.setdefault(row.key, row)
    return rows


def _whole_lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []


class Journal:
    """A journal open for appending, by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Row] = {}
        self._file = contextlib.ExitStack()
        self._descriptor = -1

    def __enter__(self) -> Journal:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._file.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise InputError(
                f"{self.path} is being written by another process; wait for it or stop it "
                "(two writers would repeat each other's work)"
            ) from None
        try:
            self._check_in_place(descriptor)
            self.rows = read(self.path)
            self._drop_torn_line(descriptor)
        except BaseException:
            self._file.close()
            raise
        self._descriptor = descriptor
        return self

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
