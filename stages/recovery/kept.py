"""Tensors that a recovery keeps in the cache folder: text that was written, and weights that were trained."""

from __future__ import annotations

from pathlib import Path

from stages.evaluate.calibrate import cache
from stages.evaluate.calibrate.cache import Tensors


def kept(path: Path) -> Tensors | None:
    """What lies there, or None: there is nothing, or it is damaged, which is said."""
    try:
        return cache.read(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        print(f"{path} is damaged ({error}): it is made again", flush=True)
        return None
