"""Pickles that tell when they are read: each writes a file."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Bomb:
    """A pickle of it writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def _saved(save: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


BOMBS: Mapping[str, Callable[[Path], bytes]] = {
    "pickle": lambda fired: pickle.dumps(Bomb(fired)),
    "pickle in ASCII": lambda fired: pickle.dumps(Bomb(fired), 0) + b"\n",
    "torch": lambda fired: _saved(lambda f: torch.save(Bomb(fired), f)),
    "numpy": lambda fired: _saved(lambda f: np.save(f, np.array([Bomb(fired)], object), allow_pickle=True)),
    "YAML": lambda fired: f"!!python/object/apply:os.mkdir ['{fired}']\n".encode(),
}
"""What a file may hold that some library would run, by how it is written."""
