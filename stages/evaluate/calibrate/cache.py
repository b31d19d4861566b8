"""A bounded cache on disk: tensors by key, as safetensors with a checksum, the longest unused going first."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from stages.evaluate.results import tensor_file
from stages.files import PART, InputError, atomically

_SUFFIX = ".safetensors"


Tensors = dict[str, torch.Tensor]


def write(path: Path, tensors: Mapping[str, torch.Tensor]) -> int:
    """Write tensors with a checksum of them, whole or not at all; returns how many bytes.

    Of those on the CPU no copy is made in memory.

    Raises:
        InputError: the disk does not take them.
    """
    ours = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomically(path) as temporary:
        save_file(ours, temporary, tensor_file.UNSEALED)
        tensor_file.seal(temporary)
        return temporary.stat().st_size


def read(path: Path) -> Tensors:
    """Read what `write` wrote: mapped, not copied, and the reader's own.

    Raises:
        OSError: it is not there, or not ours to read.
        ValueError: it is damaged.
    """
    tensor_file.check(path)
    return load_file(path)


class TensorCache:
    """Tensors under string keys in one folder, at most `limit_bytes` in all.

    An entry is written whole or not at all, and may go at any time: whoever reads it must be able
    to compute it again. So a folder that cannot be written is done without, and an entry that was
    altered counts as absent; either is said. Safe for several processes, machines and users.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self.limit_bytes = limit_bytes
        self._held: int | None = None
        self._writable = True
        self._said = False

    def get(self, key: str) -> Tensors | None:
        """The tensors of a key, or None if they are not there (any more), damaged or not ours to read."""
        path = self._path(key)
        try:
            found = read(path)
        except OSError:
            return None
        except ValueError as error:
            if not self._said:
                print(f"{path} is damaged ({error}): it, and others like it, are computed again", flush=True)
            self._said = True
            return None
        with contextlib.suppress(OSError):  # another user's, or gone
            path.touch()
        return found

    def holds(self, key: str) -> bool:
        return self._path(key).is_file()

    def put(self, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Keep the tensors of a key, and let go of the longest unused beyond the limit."""
        if not self._writable:
            return
        path = self._path(key)
        try:
            size = write(path, tensors)
        except InputError as error:
            self._writable = False
            print(f"Done without the cache: {error}, or name another folder in PRUNECAST_CACHE", flush=True)
            return
        if self._held is None:
            self._held = sum(size for _, size, _ in self._entries())
        else:
            self._held += size
        if self._held > self.limit_bytes:
            self._shrink(path)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{_SUFFIX}"

    def _entries(self) -> list[tuple[float, int, Path]]:
        """Last use, size and path of every entry and of what is being written, the longest unused first."""
        found = []
        for path in self._folder.iterdir():
            if path.suffix not in (_SUFFIX, PART):
                continue
            with contextlib.suppress(OSError):  # another process let go of it
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        return sorted(found)

    def _shrink(self, newest: Path) -> None:
        entries = self._entries()
        held = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if held <= self.limit_bytes:
                break
            if path != newest and path.suffix == _SUFFIX:
                with contextlib.suppress(OSError):  # another user's
                    path.unlink(missing_ok=True)
                    held -= size
        self._held = held
