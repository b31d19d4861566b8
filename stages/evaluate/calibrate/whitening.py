"""Whitening: every unit of a site reduced to what it adds to those before it.

With M = G + λI the damped Gram matrix of a site's activations x, its elements in some order, and its
Cholesky factor M = L Lᵀ, R = L⁻¹ makes z = R x uncorrelated on the calibration text: z_i is x_i less what
x_0 .. x_{i-1} foretell of it. R is lower triangular, and its rows from c on say all that refitting the
first c elements has to know (`least_squares`, `curvature`): a prefix needs no system of its own.

Every width of an MLP is a prefix of its sorted channels, and one with whole KV groups a prefix of the
sorted groups. Widths with h heads of each group are the prefixes of an order of their own: the first h
heads of every group, group by group, then the rest. So attention has one R for every h.

A 7B Llama has 17 GB of them. They lie on the device where there is room, else in pinned host memory, else
in a file without a name, which the system takes away with the process; a width needs its last rows only,
which is what then travels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stages.architecture import Kind, ModelShape, Site, Width
from stages.files import InputError


def prefix_order(shape: ModelShape, site: Site, heads: int) -> Tensor:
    """Elements (n,) of a site's sorted activations, so that widths of `heads` heads a group are prefixes.

    For an MLP, or whole groups, they stay as they are.
    """
    places = torch.arange(elements(shape, site))
    if site.kind is Kind.MLP:
        return places
    of_group = places.view(*shape.width(site), shape.head_dim)
    return torch.cat([of_group[:, :heads].flatten(), of_group[:, heads:].flatten()])


def heads_of(kind: Kind, width: Width) -> int:
    """Which of a site's orders a width is a prefix of: by its heads a group; 1 for an MLP."""
    return 1 if kind is Kind.MLP else width[1]


def prefix_size(shape: ModelShape, kind: Kind, width: Width) -> int:
    """How many elements of the site's activations a width keeps."""
    return width[0] if kind is Kind.MLP else width[0] * width[1] * shape.head_dim


def elements(shape: ModelShape, site: Site) -> int:
    """Inputs of a dense site's output projection: the side of its Gram matrix."""
    return prefix_size(shape, site.kind, shape.width(site))


def widest(shape: ModelShape) -> int:
    """Inputs of the output projection that has most."""
    return max(elements(shape, site) for site in shape.sites())


def orders_of(shape: ModelShape, site: Site) -> Iterator[int]:
    """The heads a group of each of a site's orders, whole groups first."""
    yield from range(shape.width(site)[1], 0, -1) if site.kind is Kind.ATTENTION else (1,)


def whitening(damped: Tensor) -> Tensor:
    """R (n, n) in float32 of a damped Gram matrix M (n, n) in float64; M is written over.

    Raises:
        InputError: no damping that is so small makes M positive definite.
    """
    lower = lower_factor(damped)
    unit = damped.zero_()
    unit.diagonal().fill_(1.0)
    inverse: Tensor = torch.linalg.solve_triangular(lower, unit, upper=False)
    return inverse.float().contiguous()  # row by row, as they are asked for


def lower_factor(damped: Tensor) -> Tensor:
    """L (n, n) of a damped Gram matrix (n, n), which is L Lᵀ.

    Raises:
        InputError: no damping that is so small makes it positive definite.
    """
    lower: Tensor
    lower, failed = torch.linalg.cholesky_ex(damped)
    if failed:
        raise InputError(
            f"the repair has no solution: the {len(damped)} activations of a site depend on each other on "
            "the calibration text, and evaluate.reconstruction.damping is too small to tell them apart. "
            "Raise it, to 0.01 for example, or raise evaluate.calibration.samples"
        )
    return lower


@dataclass(frozen=True)
class Room:
    """Bytes that whitenings may take on the device and in host memory, and where a file may lie.

    On a CPU the device's is host memory.
    """

    device_bytes: int
    host_bytes: int
    folder: Path


class Whitenings:
    """Whitenings of sites, by the heads a group of their order, each where there is room for it."""

    def __init__(self, device: torch.device, room: Room) -> None:
        self._device = device
        self._room = room
        self._left = {"device": room.device_bytes, "host": room.host_bytes}
        self._held: dict[tuple[Site, int], Tensor] = {}

    def put(self, site: Site, heads: int, matrix: Tensor) -> None:
        """Keep one that lies on the device."""
        self._held[site, heads] = self._placed(matrix)

    def rows(self, site: Site, heads: int, start: int = 0) -> Tensor:
        """The rows from `start` on, on the device."""
        return self._held[site, heads][start:].to(self._device, non_blocking=True)

    def _placed(self, matrix: Tensor) -> Tensor:
        if self._takes("device", matrix):
            return matrix
        if self._takes("host", matrix):
            pinned = torch.empty(matrix.shape, dtype=matrix.dtype, pin_memory=matrix.is_cuda)
            return pinned.copy_(matrix)
        return self._on_disk(matrix)

    def _takes(self, where: str, matrix: Tensor) -> bool:
        fits = self._left[where] >= matrix.nbytes
        self._left[where] -= matrix.nbytes * fits
        return fits

    def _on_disk(self, matrix: Tensor) -> Tensor:
        folder = self._room.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(matrix.cpu().numpy().data)
                file.flush()
                mapped = np.memmap(file, np.float32, mode="c", shape=tuple(matrix.shape))
        except OSError as error:
            raise InputError(
                f"{folder}: {matrix.nbytes / 1e9:.1f} GB of the repair fit neither into memory nor there "
                f"({error.strerror}); make room, or name another folder in PRUNECAST_CACHE"
            ) from error
        return torch.from_numpy(mapped)
