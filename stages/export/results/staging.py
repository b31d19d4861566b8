"""Outputs that appear whole or not at all: written beside their places, then swapped in together."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from stages.files import OF_THE_DISK, InputError, fsync, ordinary_permissions, writing

PARTIAL = ".partial"


@contextlib.contextmanager
def replacing(parent: Path) -> Iterator[Path]:
    """A new folder whose entries replace those of the same names in `parent` when the block ends.

    Until then `parent` stays as it was, whatever ends the block: an error, a kill or a full disk.
    Everything is on the disk before the first entry takes its place, each of them in one step.
    Files get the permissions that the umask leaves, whoever wrote them.

    Raises:
        InputError: nothing can be written there, or the disk is full.
    """
    new = parent / PARTIAL
    _require_writable(parent)
    try:
        with writing(parent, OF_THE_DISK):
            parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(new, ignore_errors=True)  # what a kill left
            new.mkdir()
            yield new
            _set_ordinary_permissions(new)
            _sync(new)
            for entry in sorted(new.iterdir()):
                _take_place(entry, parent / entry.name)
            fsync(parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def require_space(folder: Path, size_bytes: int) -> None:
    """Refuse to begin what the disk has no room for.

    Raises:
        InputError: less than `size_bytes` are free where `folder` is, or will be, or nothing can be written.
    """
    existing = _require_writable(folder)
    free = shutil.disk_usage(existing).free
    if free < size_bytes:
        raise InputError(
            f"{folder} has {free / 1e6:,.0f} MB of free space; the export needs about "
            f"{size_bytes / 1e6:,.0f} MB. Free some space, or set export.dtype to one of 16 bits"
        )


def _require_writable(folder: Path) -> Path:
    """The folder, or the nearest above it that exists. Raises InputError unless a file can be made there."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    with writing(existing):
        tempfile.TemporaryFile(dir=existing).close()
    return existing


def _set_ordinary_permissions(folder: Path) -> None:
    """Give files the permissions that `open` gives; safetensors' are readable by their owner alone."""
    for path in folder.rglob("*"):
        if not path.is_symlink():
            ordinary_permissions(path)


def _sync(folder: Path) -> None:
    """Force the folder and everything in it to the disk."""
    for path in (*folder.rglob("*"), folder):
        fsync(path)


def _take_place(new: Path, old: Path) -> None:
    """Put `new` where `old` is; what was there, if a folder, is then at `new`.

    One step for files, and for folders where the system can exchange them (Linux). Elsewhere two
    renames: a kill between them leaves the previous folder beside `old`, with ``.previous`` in its name.
    """
    if not old.is_dir():
        new.replace(old)
    elif not _exchange(new, old):
        previous = old.parent / f".{old.name}.previous"
        shutil.rmtree(previous, ignore_errors=True)
        old.rename(previous)
        try:
            new.rename(old)
        except BaseException:
            previous.rename(old)
            raise
        previous.rename(new)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step, with Linux's renameat2(2); False if the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))
