"""Least-squares repair: the output projection of a pruned site, refitted to the units that are left.

With x the site's activations on calibration text, W its output projection and K the kept units,
the repaired projection minimises  Σ ‖W x − W' x_K‖² + λ‖W'‖²,  so  W' = W G[:, K] (G[K, K] + λI)⁻¹
with G = Σ x xᵀ (OBC, Frantar & Alistarh 2022, arXiv 2208.11580; SliceGPT and FLAP repair likewise
in closed form). It depends on the site and its width alone, so every (site, width) is solved once.

Units are sorted, so the kept MLP channels are a prefix, and the Cholesky factor of a prefix of G is
the prefix of G's factor: one factorisation a site and one triangular solve a width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.architecture import Kind, LayerWidth, ModelShape, Site
from stages.evaluate.elastic import ElasticNetwork


@dataclass(frozen=True)
class Factors:
    """Of one site, in sorted order: lower Cholesky factor of G + λI (n, n) and L⁻¹ G Wᵀ (n, D), float64."""

    lower: Tensor
    forward: Tensor


class Reconstruction:
    """Repaired output projections, looked up by site and width.

    grams: G of every site in *sorted* order of units; damping: λ as a fraction of G's mean diagonal;
    limit_bytes bounds the repaired projections kept in memory, the longest unused going first.
    """

    def __init__(
        self, network: ElasticNetwork, grams: Mapping[Site, Tensor], damping: float, limit_bytes: int
    ) -> None:
        self._network = network
        self._shape: ModelShape = network.shape
        self._grams = grams
        self._damping = damping
        self._limit = limit_bytes
        self._held = 0
        self._factors: dict[Site, Factors] = {}
        self._solved: OrderedDict[tuple[Site, tuple[int, ...]], Tensor] = OrderedDict()

    def projection(self, site: Site, width: LayerWidth) -> Tensor | None:
        """The repaired projection (D, kept elements) in the network's dtype; None for a dense site."""
        dense = self._shape.dense_width
        kept = width[:2] if site.kind is Kind.ATTENTION else width[2:]
        if kept == (dense[:2] if site.kind is Kind.ATTENTION else dense[2:]):
            return None
        key = (site, tuple(kept))
        if key in self._solved:
            self._solved.move_to_end(key)
            return self._solved[key]
        solved = self._solve(site, width).to(self._network.dtype).contiguous()
        self._solved[key] = solved
        self._held += solved.nbytes
        while self._held > self._limit and len(self._solved) > 1:
            _, dropped = self._solved.popitem(last=False)
            self._held -= dropped.nbytes
        return solved

    def _solve(self, site: Site, width: LayerWidth) -> Tensor:
        if site.kind is Kind.MLP:
            factors = self._factors_of(site)
            c = width.channels
            upper = factors.lower[:c, :c].T
            solved: Tensor = torch.linalg.solve_triangular(upper, factors.forward[:c], upper=True)
            return solved.T
        g, h, d = width.kv_groups, width.heads_per_group, self._shape.head_dim
        index = torch.arange(self._shape.kv_groups * self._shape.heads_per_group * d)
        kept = index.view(self._shape.kv_groups, -1)[:g, : h * d].flatten().to(self._network.device)
        gram = self._damped(site)
        weight = self._network.layers[site.layer].o.flatten(1).double()
        lower = torch.linalg.cholesky(gram[kept][:, kept])
        target = self._grams[site].double()[kept] @ weight.T
        return torch.cholesky_solve(target, lower).T

    def _factors_of(self, site: Site) -> Factors:
        if site not in self._factors:
            weight = self._network.layers[site.layer].down.double()
            lower = torch.linalg.cholesky(self._damped(site))
            target = self._grams[site].double() @ weight.T
            forward = torch.linalg.solve_triangular(lower, target, upper=False)
            self._factors[site] = Factors(lower, forward)
        return self._factors[site]

    def _damped(self, site: Site) -> Tensor:
        gram = self._grams[site].double()
        diagonal = gram.diagonal()
        level = self._damping * diagonal.mean() + torch.finfo(torch.float32).tiny
        return gram + level * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
