"""Repair again, layer after layer, on the pruned network's own inputs against the dense outputs.

`least_squares` refits each site to the dense network's activations, as if nothing else were cut.
Here the sites of one architecture are refitted in the order of the layers, each to what really
reaches it: with x̃ the pruned network's activations, y the dense site's output and e the difference
of the hidden states that has built up so far (dense minus pruned), the projection minimises
Σ ‖y + e - W' x̃‖² + λ‖W' - W₀‖², so that a site also makes up for the ones before it. W₀ is the
repaired projection without this step. From the first cut on dense sites are refitted too: their inputs
changed as well.

e is small and mostly noise, so W₀ has to weigh far more than in the first repair: as if `PRIOR_TOKENS`
tokens for every input had shown it. λ then does not grow with the text, and serves little of it as well as
much (tests/benchmarks/README.md).
Where a norm N = w ∘ y / rms(y) stands behind the projection, y is what it makes in the dense network, every
token counts as N scales it there (1 / rms(y)), and e is divided by w, less where w is small.
(SparseGPT, Frantar & Alistarh 2023, arXiv 2301.00774, and SliceGPT compress on the compressed
network's inputs; the error term is Gram-based error feedback as in Qronos-style rounding.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.architecture import Architecture, LayerWidth, ModelShape, Site
from stages.evaluate.calibrate.whitening import elements, lower_factor, widest
from stages.evaluate.network.batch import Batch
from stages.evaluate.network.device import fits
from stages.evaluate.network.elastic import ElasticNetwork
from stages.evaluate.network.places import Places
from stages.evaluate.network.repair import Repair
from stages.progress import Progress

Projections = dict[Site, Tensor]

PRIOR_TOKENS = 16
"""Tokens for each input of a projection that W₀ counts as."""

SMALL_WEIGHT = 0.1
"""A norm's weight, in its root mean square, through which half of e is made up for."""

VERSION = 3
"""The version of the projections, set by hand: raise it when they change."""


def repair_again(
    network: ElasticNetwork,
    repair: Repair,
    architectures: Sequence[Architecture],
    batches: Sequence[Batch],
) -> dict[Architecture, Projections]:
    """Projections (D, kept) of every site that an architecture keeps, float32 on the CPU.

    `repair`, the first one, gives W₀. The dense network runs once for all of them. Memory: the hidden states
    of all batches twice, and once more for every architecture, and a site's activations, in host memory where
    a GPU does not hold them (`_Aside`); and one site's Gram matrix.
    """
    repair.prepare(architectures)  # before its time is taken for a site's
    found: dict[Architecture, Projections] = {architecture: {} for architecture in architectures}
    on_device = [batch.to(network.device) for batch in batches]
    aside = _Aside.of(network, sum(batch.tokens.numel() for batch in batches), len(architectures))
    with torch.inference_mode():
        before = [aside.put(network.embed(batch.tokens)) for batch in on_device]
        places = [network.places(batch) for batch in on_device]
        pruned = {architecture: list(before) for architecture in architectures}
        uncut = set(architectures)
        sites = list(network.shape.sites())
        for site in Progress(sites, desc="repair again", unit="site", leave=False):
            after, goals, full = [], [], network.shape.widths[site.layer]
            for kept, here in zip(before, places, strict=True):
                hidden = aside.back(kept)
                x = network.activations(site, full, hidden, here)
                after.append(aside.put(network.output(site, full, x, onto=hidden)))
                share = network.share(site, full, x)
                made = None if share is None else aside.put(network.made(site, full, x))
                goals.append(_Goal(kept, after[-1], made, share))
            for architecture, states in pruned.items():
                width = architecture.widths[site.layer]
                if width.of(site.kind) != full.of(site.kind):
                    uncut.discard(architecture)
                if architecture in uncut:
                    pruned[architecture] = after
                    found[architecture][site] = network.projection(site, full).float().cpu()
                    continue
                if not width.keeps(site.kind):
                    continue
                refit = _Refit(network, site, width, aside)
                for own, goal, here in zip(states, goals, places, strict=True):
                    refit.add(own, goal, here)
                projection = refit.solve(repair)
                pruned[architecture] = refit.carried(states, projection)
                found[architecture][site] = projection.cpu()
            before = after
    return found


@dataclass(frozen=True)
class _Aside:
    """Tensors that wait for their batch: on the device, or in host memory, at the cost of two copies."""

    device: torch.device
    in_host_memory: bool

    @classmethod
    def of(cls, network: ElasticNetwork, tokens: int, architectures: int) -> _Aside:
        """The place of all that waits: the device, if it holds that beside what solving a site takes."""
        held = waiting_bytes(network.shape, tokens, architectures, network.dtype.itemsize)
        together = held + solving_bytes(network.shape)
        return cls(network.device, in_host_memory=not fits(network.device, together))

    def put(self, tensor: Tensor) -> Tensor:
        if not self.in_host_memory:
            return tensor
        waiting = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return waiting.copy_(tensor, non_blocking=True)

    def back(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)


def kept_bytes(shape: ModelShape) -> int:
    """Bytes of the projections of an architecture at most, as they are kept: in float32."""
    return 4 * shape.hidden * sum(elements(shape, site) for site in shape.sites())


def waiting_bytes(shape: ModelShape, tokens: int, architectures: int, each: int) -> int:
    """Bytes of what waits, of elements of `each`: states around a site, activations of the widest."""
    return tokens * each * (shape.hidden * (3 + architectures) + widest(shape))


def solving_bytes(shape: ModelShape) -> int:
    """Bytes that solving the widest site takes: its Gram matrix, in float64 too, factor, goals, solution."""
    side = widest(shape)
    return 28 * side * (side + shape.hidden)


class _Goal(NamedTuple):
    """What a dense site makes of a batch: hidden states (B, L, D) before and after it, which wait aside.

    Where a norm stands behind the site also what is normed, and what each token of that is multiplied by.
    """

    before: Tensor
    after: Tensor
    made: Tensor | None
    share: Tensor | None


class _Refit:
    """One site of one architecture: its Gram matrix, what it is to make, and its activations meanwhile."""

    def __init__(self, network: ElasticNetwork, site: Site, width: LayerWidth, aside: _Aside) -> None:
        self.network, self.site, self.width, self.aside = network, site, width, aside
        bias = network.output_bias(site)
        self.scale = network.recipe.residual_scale
        self.bias = network.embedding.new_zeros(()) if bias is None else bias
        self.norm = network.layers[site.layer].norm_after(site.kind)
        self._activations: list[Tensor] = []
        self._gram = self._cross = torch.zeros(())
        self._tokens = 0

    def add(self, states: Tensor, goal: _Goal, places: Places) -> None:
        """Add a batch: hidden states (B, L, D) that reach the site, and what is to become of them."""
        back = self.aside.back
        states = back(states)
        own = self.network.activations(self.site, self.width, states, places)
        flat = own.flatten(0, 1).float()
        if goal.made is None or goal.share is None:
            wanted = (back(goal.after) - states).flatten(0, 1).float() / self.scale - self.bias
        else:
            share, missing = goal.share.flatten(0, 1), (back(goal.before) - states).flatten(0, 1).float()
            wanted = share * (back(goal.made).flatten(0, 1).float() - self.bias) + self._unnormed(
                missing / self.scale
            )
            flat = flat * share
        if not self._activations:
            self._gram, self._cross = flat.T @ flat, flat.T @ wanted
        else:
            self._gram.addmm_(flat.T, flat)
            self._cross.addmm_(flat.T, wanted)
        self._activations.append(self.aside.put(own))
        self._tokens += len(flat)

    def _unnormed(self, added: Tensor) -> Tensor:
        """What a norm behind the site scales to what is to be `added`; through small weights, less."""
        assert self.norm is not None
        weight = self.norm.float() + self.network.recipe.norm_offset
        return added * weight / (weight.square() + SMALL_WEIGHT**2 * weight.square().mean())

    def solve(self, repair: Repair) -> Tensor:
        """The projection (D, kept) in float32."""
        start = self.network.projection(self.site, self.width, repair).to(torch.float64)
        moments = self._gram.double()
        damping = PRIOR_TOKENS * len(moments) / self._tokens
        level = damping * moments.diagonal().mean() + torch.finfo(torch.float32).tiny
        moments.diagonal().add_(level)
        lower = lower_factor(moments)
        return torch.cholesky_solve(self._cross.double() + level * start.T, lower).T.float().contiguous()

    def carried(self, states: Sequence[Tensor], projection: Tensor) -> list[Tensor]:
        """The hidden states past the site."""
        bias, norm, back = self.bias.to(states[0].dtype), self.norm, self.aside.back
        made = (F.linear(back(own), projection.to(own.dtype)) + bias for own in self._activations)
        steps = (self.network.norm(one, norm) for one in made)
        return [
            self.aside.put(back(before).add(step, alpha=self.scale))
            for before, step in zip(states, steps, strict=True)
        ]
