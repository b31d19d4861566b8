"""One process at a time: locks on files, which end with the process that holds them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def exclusive(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Wait until no other process is in such a block of this path, a file that is made where it is not there.

    Raises:
        BlockingIOError: another process is, and this one does not `wait`.
        InputError: this system has no such locks.
        OSError: the file cannot be opened.
    """
    with path.open("a") as file:
        lock(file.fileno(), wait=wait)
        yield


def lock(descriptor: int, *, wait: bool = True) -> None:
    """Lock an open file, until it is closed.

    Raises:
        BlockingIOError: another process holds it, and this one does not `wait`.
        InputError: this system has no such locks.
    """
    require_locks()
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def require_locks() -> None:
    """Refuse a system without the locks of POSIX.

    Raises:
        InputError: on Windows.
    """
    try:
        import fcntl  # noqa: F401
    except ImportError:
        from stages.files import InputError  # which locks its temporary files

        raise InputError(
            "Prunecast runs on Linux and macOS: this system lacks the locks on files that keep two writers "
            "apart (Python's module fcntl). On Windows run it in WSL"
        ) from None


def holder(descriptor: int) -> str:
    """Who holds the lock of an open file, " (12: python -m stages.search, since 14:05:09)", or nothing.

    Linux alone tells, in /proc/locks.
    """
    import psutil

    inode = f":{os.fstat(descriptor).st_ino}"
    with contextlib.suppress(OSError, ValueError, IndexError, psutil.Error):
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1] == "FLOCK" and words[5].endswith(inode):
                process = psutil.Process(int(words[4]))
                since = time.strftime("%H:%M:%S", time.localtime(process.create_time()))
                return f" ({process.pid}: {' '.join(process.cmdline())}, since {since})"
    return ""
