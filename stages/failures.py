"""What a disk, a system or a memory refuses, explained: where, what, and the remedy."""

from __future__ import annotations

import errno
import os
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

_MEMORY = (
    "there is not enough memory; close what else uses it, or lower evaluate.prefix_cache_mb or the "
    "measurement's sequence_length"
)
_DENIED = "this user may not read or write it; mend its owner or permissions, or work in another folder"
_REMEDIES = {
    errno.ENOSPC: "the disk is full; make room",
    errno.EDQUOT: "your quota of the disk is used up; make room",
    errno.EFBIG: "the file system or `ulimit -f` allows no file as large; raise the limit",
    errno.EROFS: "that place is read-only; make it writable, or work in another folder",
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EMFILE: "too many files are open at once; raise the limit, e.g. by `ulimit -n 4096`",
    errno.ENFILE: "too many files are open on this machine; close some",
    errno.EIO: "the disk or the network folder fails; look at the system's log, or work on another disk",
    errno.ESTALE: "the network folder went away; mount it again",
    errno.ENOMEM: _MEMORY,
    errno.ENOENT: "it is not there; was it removed meanwhile?",
    errno.EPIPE: "what reads the output has ended",
}
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|bad_alloc", re.IGNORECASE)
_STAGES = Path(__file__).parent


def explained(error: BaseException) -> str | None:
    """A sentence for a person, or None where the error is none of the system's: then it is a bug.

    Packages that are not written in Python put the system's error into the text of one of their own.
    """
    for cause in _causes(error):
        if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError":
            return f"{_MEMORY}{_where(error)}"
        if isinstance(cause, OSError):
            number, what = cause.errno, cause.strerror or str(cause) or type(cause).__name__
            what = " -> ".join(str(name) for name in (cause.filename, cause.filename2) if name) or what
            remedy = _REMEDIES.get(number or 0, cause.strerror or "mend that")
            return f"{what}: {remedy}{_where(error)}"
    text = str(error).strip()
    if _OUT_OF_MEMORY.search(text):
        return f"{_MEMORY}{_where(error)}"
    said = re.search(r"os error (\d+)", text)
    number = int(said[1]) if said else next((n for n in _REMEDIES if os.strerror(n) in text), None)
    if number in _REMEDIES:
        return f"{' '.join(text.split())[:300]}: {_REMEDIES[number]}{_where(error)}"
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _where(error: BaseException) -> str:
    """The place in our code, for who reports it."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(_STAGES)
    ]
    if not frames:
        return ""
    return f" ({frames[-1].name} in stages/{Path(frames[-1].filename).relative_to(_STAGES)})"
