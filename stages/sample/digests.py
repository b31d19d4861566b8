"""Digests of a model's files, which may be gigabytes: noted in the cache folder with the files' status."""

from __future__ import annotations

import contextlib
import hashlib
import time
from functools import lru_cache
from pathlib import Path

from stages.files import InputError, cache_folder, digest, read_json, write_json

SCHEMA, VERSION = "prunecast.file-digest", 1
_SETTLED_NS = 2 * 10**9  # the coarsest clock of a file system: of a younger file a change may go unseen

Status = tuple[int, ...]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal: read once a process, while its status stays the same."""
    return _read(path, status_of(path))


def noted_digest(path: Path) -> str:
    """The digest that was noted of a file of this status, whatever process read it; else `file_digest`.

    A file that was replaced or written has another status, whatever its times were set to. Bits that a disk
    has lost do not show in it: what guards against those reads the file.
    """
    note, status = _note(path), status_of(path)
    try:
        found = read_json(note, SCHEMA, VERSION)
        if found["status"] == list(status):
            return str(found["sha256"])
    except (InputError, KeyError, OSError):
        pass  # there is none, or it is damaged: it is written anew
    return file_digest(path)


def status_of(path: Path) -> Status:
    """Device, inode, size in bytes, and the times of the last change of content and of status in ns."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@lru_cache(maxsize=1024)
def _read(path: Path, status: Status) -> str:
    begun = time.time_ns()
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if status == status_of(path) and max(status[-2:]) < begun - _SETTLED_NS:
        with contextlib.suppress(OSError, InputError):  # a note that cannot be kept is done without
            write_json(_note(path), SCHEMA, VERSION, {"status": list(status), "sha256": found})
    return found


def _note(path: Path) -> Path:
    return cache_folder() / "digests" / f"{digest(str(path.resolve()))}.json"
