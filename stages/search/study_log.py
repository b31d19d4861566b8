"""The file of the studies: Optuna's journal, which may tear, fill the disk or be altered at no one's cost.

What it holds are forecasts, which are cheap: they are asked again where it cannot be believed, and the
search goes on without it where it cannot be written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend, JournalFileOpenLock

from stages.files import digest
from stages.signals import deferred

_SUM = "checksum"


class StudyLog(BaseJournalBackend):
    """Operations of studies, a line of JSON each, which optuna-dashboard can show.

    One process writes: the one that holds the search's journal. A line carries a checksum of itself and of
    those before it.
    """

    def __init__(self, path: Path) -> None:
        """Read the file, or begin it: without a torn end, and anew where a line is not as it was written."""
        self._path = path.absolute()  # Optuna's lock names it, whatever folder it is looked at from
        self._shown = path
        self._lock = JournalFileOpenLock(str(self._path))
        self._logs: list[dict[str, Any]] = []
        self._last = ""
        self._kept = True
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            for left in self._path.parent.glob(f"{path.name}.lock*"):  # of a process that was killed
                left.unlink()
            self._path.touch()
            self._begin(self._path.read_bytes())
        except OSError as error:
            self._go_without(error)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The operations from that number on."""
        yield from self._logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Keep operations, in the file too as long as that can be written."""
        self._logs += json.loads(json.dumps(logs))  # as a later start reads them
        if not self._kept:
            return
        lines = b"".join(self._sealed(log) for log in logs)
        try:
            with deferred():
                self._write(lines)
        except (OSError, RuntimeError) as error:  # RuntimeError: somebody removed the lock
            self._go_without(error)

    def _write(self, lines: bytes) -> None:
        self._lock.acquire()
        try:
            with self._path.open("ab") as file:
                file.write(lines)
        finally:
            self._lock.release()

    def _begin(self, content: bytes) -> None:
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                log = dict(json.loads(line))
                if log.pop(_SUM) != self._next(log):
                    raise ValueError
            except (ValueError, LookupError, TypeError, RecursionError):
                again = "the studies are begun anew"
                print(f"{self._shown}, line {number} is not as it was written: {again}", flush=True)
                self._logs, self._last = [], ""
                self._path.write_bytes(b"")
                return
            self._last = self._next(log)
            self._logs.append(log)
        if whole != content:
            self._path.write_bytes(whole)

    def _sealed(self, log: Mapping[str, Any]) -> bytes:
        self._last = self._next(log)
        return (json.dumps({**log, _SUM: self._last}, separators=(",", ":")) + "\n").encode()

    def _next(self, log: Mapping[str, Any]) -> str:
        return digest(self._last, log)

    def _go_without(self, error: Exception) -> None:
        self._kept = False
        why = error.strerror if isinstance(error, OSError) else error
        print(f"{self._shown} cannot be kept ({why}): the search goes on without it", flush=True)
