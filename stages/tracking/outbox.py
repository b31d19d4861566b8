"""What is to be logged: on the disk before it is tried, and until it is logged.

A folder a process, a file a letter, in `mlflow.pending` beside the store: no output of a stage, and the
same for the copies of the repository in which `dvc exp run` works. What a process leaves, the next one takes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from stages.locks import lock
from stages.tracking import store

FOLDER = "mlflow.pending"
_BEGIN = "begin.json"
_LOCK = "lock"


class Kind(StrEnum):
    """What a letter asks for."""

    BEGIN = "begin"
    RUN = "run"
    TAGS = "tags"
    STAGE = "stage"
    PREDICTOR = "predictor"
    MODEL = "model"
    BURY = "bury"
    END = "end"


@dataclass(frozen=True, eq=False)
class Begin:
    """The run of the pipeline that letters belong to, as a stage knows it before any store is asked."""

    experiment: str
    stage: str
    invocation: str
    """The process of dvc, as `invocation.ProcessIdentity` writes it."""
    name: str
    tags: Mapping[str, str]
    """Tags of the run of the pipeline, where it is new."""
    own: Mapping[str, str]
    """Tags of every run of this process."""
    params: Mapping[str, str]
    at: int
    """Milliseconds since the epoch."""
    views: Mapping[str, str] = field(default_factory=dict)
    """Saved views of the experiment, by name (`views`)."""


@dataclass(frozen=True, eq=False)
class Letter:
    """One thing to be logged. To log it twice does no harm, or its tags hold a key by which that is seen."""

    kind: Kind
    begin: Begin
    at: int
    content: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    path: Path | None = None
    """Where it is kept, beside a folder of its files; None where it is not."""


class Outbox:
    """The letters of this process, and those that others left."""

    def __init__(self, begin: Begin) -> None:
        self.begin = begin
        self.root = store.root() / FOLDER
        self.problem = ""
        """Why letters cannot be kept, if so."""
        self._folder: Path | None = None
        self._locks: dict[Path, IO[bytes]] = {}
        self._number = 0
        self._at = begin.at

    def open(self) -> None:
        """Make this process's folder; where that fails, letters are not kept, and `problem` says why."""
        folder = self.root / f"{self.begin.at}-{self.begin.stage}-{os.getpid()}"
        try:
            folder.mkdir(parents=True)
            (folder / _LOCK).touch()
            self._locks[folder] = _claimed(folder)
            _write(folder / _BEGIN, asdict(self.begin))
            self._folder = folder
        except OSError as error:
            self.problem = str(error)

    def add(self, kind: Kind, content: Mapping[str, Any], files: Sequence[Path] = ()) -> Letter:
        """A letter, kept with copies of its files.

        Raises:
            FileNotFoundError: there is no such file.
        """
        for file in files:
            file.stat()
        self._at = max(int(time.time() * 1000), self._at + 1)  # in the order in which they were told
        letter = Letter(kind, self.begin, self._at, content, tuple(files))
        if self._folder is None:
            return letter
        self._number += 1
        path = self._folder / f"{self._number:06d}.json"
        try:
            copies = [_copied(file, path.with_suffix("")) for file in files]
            names = [file.name for file in copies]
            _write(path, {"kind": kind, "at": letter.at, "content": content, "files": names})
        except OSError as error:
            self.problem = str(error)
            return letter
        return Letter(kind, self.begin, letter.at, content, tuple(copies), path)

    def left(self) -> Iterator[Letter]:
        """Letters of processes that ended before they were logged, oldest first; from now on ours."""
        with contextlib.suppress(OSError):
            for folder in sorted(path for path in self.root.iterdir() if path.is_dir()):
                if folder not in self._locks:
                    with contextlib.suppress(OSError):
                        self._locks[folder] = _claimed(folder)
                        yield from self._letters(folder)

    def remove(self, letter: Letter) -> None:
        """Forget a letter, and the folder with the last one that another process left."""
        if letter.path is None:
            return
        with contextlib.suppress(OSError):
            letter.path.unlink()
            shutil.rmtree(letter.path.with_suffix(""), ignore_errors=True)
            if letter.path.parent != self._folder:
                self._tidy(letter.path.parent)

    def close(self) -> None:
        """Leave what is not logged to the next process, and nothing else."""
        for folder, file in list(self._locks.items()):
            with contextlib.suppress(OSError):
                self._tidy(folder)
            file.close()
        with contextlib.suppress(OSError):
            self.root.rmdir()

    def _letters(self, folder: Path) -> Iterator[Letter]:
        paths = sorted(path for path in folder.glob("*.json") if path.name != _BEGIN)
        if not paths:
            self._tidy(folder)
            return
        try:
            begin = Begin(**json.loads((folder / _BEGIN).read_bytes()))
            for path in paths:
                found = json.loads(path.read_bytes())
                files = tuple(path.with_suffix("") / name for name in found["files"])
                yield Letter(Kind(found["kind"]), begin, found["at"], found["content"], files, path)
        except (ValueError, TypeError, KeyError, FileNotFoundError) as error:
            store.say(self.begin.stage, f"{folder} is damaged ({error!r}): delete it; it is passed over")

    @staticmethod
    def _tidy(folder: Path) -> None:
        if not any(path.name != _BEGIN for path in folder.glob("*.json")):
            shutil.rmtree(folder)


def _claimed(folder: Path) -> IO[bytes]:
    """The lock of a folder, which ends with this process.

    Raises:
        OSError: another process has it, or the folder is gone.
    """
    file = (folder / _LOCK).open("rb+")
    try:
        lock(file.fileno(), wait=False)
        if os.fstat(file.fileno()).st_nlink == 0:
            raise FileNotFoundError(folder)
    except BaseException:
        file.close()
        raise
    return file


def _copied(file: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    if file.is_dir():
        return Path(shutil.copytree(file, folder / file.name))
    return Path(shutil.copy(file, folder / file.name))


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all; a loss of power may lose it, so that nothing waits for the disk."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content), encoding="utf-8")
    part.replace(path)
