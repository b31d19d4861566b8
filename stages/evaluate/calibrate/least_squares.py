"""Least-squares repair: the output projection of a pruned site, refitted to the units that are left.

With x the site's activations on calibration text, W its output projection, K the kept units and T those
that are taken away, the repaired projection minimises  Σ ‖W x - W' x_K‖² + λ‖W' - W_K‖²:

    W' = W_K + W_T G[T, K] (G[K, K] + λI)⁻¹        G = Σ x xᵀ

(OBC, Frantar & Alistarh 2022, arXiv 2208.11580; ZipLM, Kurtic et al. 2023, arXiv 2302.04089, for
structures.) It depends on the site and its width alone. K is a prefix of one of the site's orders, whose
`whitening` R = L⁻¹ of G + λI = L Lᵀ gives it without a system to solve but a triangle as large as T:

    W' = W_K - Y R[T, K]        Y R[T, T] = W_T

What W' misses is Y z_T at every token, z = R x, which is what `curvature` weighs. Nothing of it is kept on
disk: on a GPU a projection of a 7B Llama takes less time than reading it would.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor

from stages.architecture import Architecture, LayerWidth, Site, Width
from stages.evaluate.calibrate.statistics import SiteStatistics
from stages.evaluate.calibrate.whitening import (
    Room,
    Whitenings,
    heads_of,
    orders_of,
    prefix_order,
    prefix_size,
    whitening,
)
from stages.evaluate.network.elastic import ElasticNetwork
from stages.evaluate.network.layers import sorted_elements
from stages.evaluate.network.repair import RepairMethod
from stages.progress import Progress

VERSION = 2
"""The version of the projections, set by hand: raise it when they change."""

if TYPE_CHECKING:
    from stages.evaluate.calibrate.calibration import Calibrator

K = TypeVar("K")


class _Bounded(Generic[K]):
    """Tensors in memory by key, the longest unused going first beyond a limit in bytes."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._held = 0
        self._entries: OrderedDict[K, tuple[Tensor, ...]] = OrderedDict()

    def get(self, key: K) -> tuple[Tensor, ...] | None:
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: K, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self._entries[key] = tensors
        self._held += sum(t.nbytes for t in tensors)
        while self._held > self._limit and len(self._entries) > 1:
            _, dropped = self._entries.popitem(last=False)
            self._held -= sum(t.nbytes for t in dropped)
        return tensors


Moments = Callable[[], Iterable[tuple[Site, SiteStatistics]]]
"""The sites' statistics, one after the other, so that no two Gram matrices have to be held at once."""


class LeastSquares:
    """Repaired output projections of an elastic network, by site and width.

    `damping` is λ as a fraction of G's mean diagonal. `moments` are asked once, when the first projection
    is. At most `limit_bytes` of projections are held: those of one architecture at least, since every batch
    asks for them again.
    """

    def __init__(
        self, network: ElasticNetwork, moments: Moments, damping: float, room: Room, limit_bytes: int = 2**28
    ) -> None:
        self._network = network
        self._moments = moments
        self._damping = damping
        self._room = room
        self._whitenings: Whitenings | None = None
        self._solved: _Bounded[tuple[Site, Width]] = _Bounded(limit_bytes)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the projections besides the network and its calibration."""
        return {"method": "least-squares", "damping": self._damping, "version": VERSION}

    @property
    def words(self) -> str:
        """What it does to output projections, for the reader of a report."""
        return (
            "output projections of pruned sites refitted by least squares on the same calibration text, "
            f"damping {self._damping:g}"
        )

    def projection(self, site: Site, width: LayerWidth) -> Tensor | None:
        """The repaired projection (D, kept elements) in the network's dtype; None for a dense site."""
        kept = width.of(site.kind)
        if kept == self._network.shape.width(site):
            return None
        solved = self._solved.get((site, kept))
        if solved is None:
            solved = self._solved.put((site, kept), (self._solve(site, kept),))
        return solved[0]

    def prepare(self, architectures: Iterable[Architecture]) -> None:
        """Whiten the sites, if any architecture cuts one."""
        if any(a != self._network.shape.dense() for a in architectures):
            self._made()

    def whitening(self, site: Site, heads: int) -> Tensor:
        """R (n, n) of the site's order for widths of `heads` heads a group, float32 on the device."""
        return self._made().rows(site, heads)

    def on(self, network: ElasticNetwork) -> LeastSquares:
        """This repair of a network with the same units in another precision."""
        if network is self._network:
            return self
        self._made()
        other = copy.copy(self)
        other._network, other._solved = network, _Bounded(0)
        return other

    def _solve(self, site: Site, kept: Width) -> Tensor:
        shape, heads = self._network.shape, heads_of(site.kind, kept)
        size = prefix_size(shape, site.kind, kept)
        order = prefix_order(shape, site, heads).to(self._network.device)
        weight = self._network.output_weight(site).float()[:, order]
        rows = self._made().rows(site, heads, size)
        goal = weight[:, size:].T
        missed = torch.linalg.solve_triangular(rows[:, size:].T, goal, upper=True)  # Yᵀ (t, D)
        found = torch.addmm(weight[:, :size], missed.T, rows[:, :size], alpha=-1)
        return found.to(self._network.dtype)

    def _made(self) -> Whitenings:
        """Whitenings of every site, made once."""
        if self._whitenings is not None:
            return self._whitenings
        made = Whitenings(self._network.device, self._room)
        shape, device = self._network.shape, self._network.device
        count = len(list(shape.sites()))
        sites = Progress(self._moments(), total=count, desc="repair", unit="site", leave=False)
        for site, moments in sites:
            gram = moments.gram.to(device)
            index = sorted_elements(self._network.order, site, shape).to(device)
            for heads in orders_of(shape, site):
                order = index[prefix_order(shape, site, heads).to(device)]
                damped = gram[order][:, order].double()
                level = self._damping * damped.diagonal().mean() + torch.finfo(torch.float32).tiny
                damped.diagonal().add_(level)
                made.put(site, heads, whitening(damped))
        self._whitenings = made
        return made


def repair(network: ElasticNetwork, calibrator: Calibrator) -> LeastSquares:
    """The repair of a network by the statistics of a calibrator, gathered when a site first needs them."""
    damping = calibrator.section.reconstruction.damping
    room, held = calibrator.memory.room, calibrator.memory.projections

    def moments() -> Iterable[tuple[Site, SiteStatistics]]:
        return calibrator.statistics(network.as_in_checkpoint())

    return LeastSquares(network, moments, damping, room, held)


LEAST_SQUARES = RepairMethod(repair, by_statistics=True)
