"""Least-squares repair: the output projection of a pruned site, refitted to the units that are left.

With x the site's activations on calibration text, W its output projection and K the kept units,
the repaired projection minimises  Σ ‖W x - W' x_K‖² + λ‖W'‖²,  so  W' = W G[:, K] (G[K, K] + λI)⁻¹
with G = Σ x xᵀ. (OBC, Frantar & Alistarh 2022, arXiv 2208.11580; ZipLM, Kurtic et al. 2023,
arXiv 2302.04089, for structures.) It depends on the site and its width alone: each is solved once,
on demand, and looked up after that, in memory and in a bounded cache on disk.

Units are sorted, so the kept MLP channels are a prefix, and the Cholesky factor of a prefix of G is
the prefix of G's factor: one factorisation a site, one triangular solve a width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from stages.architecture import Architecture, Kind, LayerWidth, Site, Width
from stages.evaluate.calibrate.cache import TensorCache
from stages.evaluate.calibrate.statistics import Statistics
from stages.evaluate.network.elastic import ElasticNetwork
from stages.evaluate.network.layers import sorted_elements
from stages.evaluate.network.repair import RepairMethod
from stages.files import InputError

VERSION = 1
"""The version of the projections, set by hand: raise it when they change."""
HELD_BYTES = {"cpu": 2**28, "cuda": 2**32}
"""Most bytes of projections and factors in memory: a look-up on disk takes as long as a layer on a GPU."""

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


class LeastSquares:
    """Repaired output projections of an elastic network, by site and width.

    `damping` is λ as a fraction of G's mean diagonal. `key` names everything that decides the
    projections but site and width. At most `limit_bytes` of them, and of factors, are held in memory.
    """

    def __init__(
        self,
        network: ElasticNetwork,
        statistics: Statistics,
        damping: float,
        cache: TensorCache,
        key: str,
        limit_bytes: int = 2**28,
    ) -> None:
        self._network = network
        self._statistics = statistics
        self._damping = damping
        self._cache = cache
        self._key = key
        self._factors: _Bounded[Site] = _Bounded(limit_bytes)
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
        if kept == self._network.shape.dense_width.of(site.kind):
            return None
        solved = self._solved.get((site, kept))
        if solved is None:
            found = self._look_up(site, kept).to(self._network.device, self._network.dtype)
            solved = self._solved.put((site, kept), (found,))
        return solved[0]

    def prepare(self, architectures: Iterable[Architecture]) -> None:
        """Solve what these architectures need and the cache does not hold, site by site.

        Each site's factor is then made once and held alone, however many widths it serves.
        """
        wanted = {
            (Site(layer, kind), width.of(kind))
            for architecture in architectures
            for layer, width in enumerate(architecture.widths)
            for kind in Kind
            if width.keeps(kind) and width.of(kind) != self._network.shape.dense_width.of(kind)
        }
        todo = sorted(w for w in wanted if not self._cache.holds(self._name(*w)))
        for site, kept in tqdm(todo, desc="repair", unit="width", leave=False, disable=not todo):
            self._look_up(site, kept)

    def _name(self, site: Site, kept: Width) -> str:
        return f"{self._key}-{site}-{'x'.join(map(str, kept))}"

    def _look_up(self, site: Site, kept: Width) -> Tensor:
        key = self._name(site, kept)
        found = self._cache.get(key)
        if found is None:
            solve = self._solve_attention if site.kind is Kind.ATTENTION else self._solve_mlp
            # Rounded to float32 before it is used or kept, so that a look-up equals a fresh solution.
            found = {"projection": solve(site, *kept).float().contiguous()}
            self._cache.put(key, found)
        return found["projection"]

    def factor(self, site: Site) -> Tensor:
        """L (C, C) of an MLP's G + λI = L Lᵀ, its units sorted; float32."""
        lower = lower_factor(self._gram(site)[1])
        return lower.float()

    def _solve_mlp(self, site: Site, channels: int) -> Tensor:
        factors = self._factors.get(site)
        if factors is None:  # L of G + λI (C, C), and L⁻¹ G Wᵀ (C, D)
            gram, damped = self._gram(site)
            lower = lower_factor(damped)
            target = gram @ self._network.layers[site.layer].down.to(gram).T
            forward = torch.linalg.solve_triangular(lower, target, upper=False)
            factors = self._factors.put(site, (lower, forward))
        lower, forward = factors
        upper = lower[:channels, :channels].T
        solved: Tensor = torch.linalg.solve_triangular(upper, forward[:channels], upper=True)
        return solved.T

    def _solve_attention(self, site: Site, kv_groups: int, heads_per_group: int) -> Tensor:
        gram, damped = self._gram(site)
        rows = heads_per_group * self._network.shape.head_dim
        elements = torch.arange(len(gram), device=gram.device)
        kept = elements.view(self._network.shape.kv_groups, -1)[:kv_groups, :rows].flatten()
        weight = self._network.layers[site.layer].o.flatten(1).to(gram)
        lower = lower_factor(damped[kept][:, kept])
        return torch.cholesky_solve(gram[kept] @ weight.T, lower).T

    def _gram(self, site: Site) -> tuple[Tensor, Tensor]:
        """G in sorted order, and G + λI, in float64."""
        gram = self._statistics[site].gram.to(self._network.device)
        index = sorted_elements(self._network.order, site, self._network.shape).to(gram.device)
        gram = gram[index][:, index].double()
        level = self._damping * gram.diagonal().mean() + torch.finfo(torch.float32).tiny
        return gram, gram + level * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


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


def repair(network: ElasticNetwork, calibrator: Calibrator) -> LeastSquares:
    """The repair of a network by the statistics of a calibrator, gathered when a site first needs them."""
    damping = calibrator.section.reconstruction.damping
    key = calibrator.key_of(network, {"projections": VERSION, "damping": damping})
    return LeastSquares(
        network, calibrator.lazy_statistics(), damping, calibrator.cache, key, HELD_BYTES[network.device.type]
    )


LEAST_SQUARES = RepairMethod(repair, by_statistics=True)
