"""A bounded cache on disk: tensors by key, as safetensors, the longest unused going first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from stages.files import atomically


class TensorCache:
    """Tensors under string keys in one folder, at most `limit_bytes` in all.

    An entry is written whole or not at all, and may go at any time: whoever reads it must be able
    to compute it again. Safe for several processes.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._held: int | None = None

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """The tensors of a key, or None if they are not there (any more) or damaged."""
        path = self._path(key)
        try:
            tensors = load_file(path)
            path.touch()
        except (FileNotFoundError, SafetensorError):
            return None
        return tensors

    def holds(self, key: str) -> bool:
        return self._path(key).is_file()

    def put(self, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Keep the tensors of a key, and let go of the longest unused beyond the limit."""
        path = self._path(key)
        with atomically(path) as temporary:
            save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary)
            size = temporary.stat().st_size
        if self._held is None:
            self._held = sum(size for _, size, _ in self._entries())
        else:
            self._held += size
        if self._held > self._limit:
            self._shrink(path)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"

    def _entries(self) -> list[tuple[float, int, Path]]:
        """Last use, size and path of every entry, the longest unused first."""
        found = []
        for path in self._folder.glob("*.safetensors"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process let go of it
                continue
            found.append((status.st_mtime, status.st_size, path))
        return sorted(found)

    def _shrink(self, newest: Path) -> None:
        entries = self._entries()
        held = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if held <= self._limit:
                break
            if path != newest:
                path.unlink(missing_ok=True)
                held -= size
        self._held = held
