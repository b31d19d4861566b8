"""Tensors that a recovery keeps in the cache folder: written whole or not at all, and checked when read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

from stages.evaluate.results import tensor_file
from stages.files import atomically


def keep(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, with a checksum of them.

    Raises:
        InputError: the disk does not take them.
    """
    ours = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomically(path) as temporary:
        temporary.write_bytes(tensor_file.sealed(safetensors.torch.save(ours)))


def kept(path: Path) -> dict[str, Tensor] | None:
    """What `keep` wrote, or None: it is not there, or damaged, which is said."""
    try:
        raw = path.read_bytes()
        tensor_file.metadata_of(raw)
    except FileNotFoundError:
        return None
    except ValueError as error:
        print(f"{path} is damaged ({error}): it is made again", flush=True)
        return None
    return safetensors.torch.load(raw)
