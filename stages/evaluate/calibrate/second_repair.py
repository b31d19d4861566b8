"""Repair again, layer after layer, on the pruned network's own inputs against the dense outputs.

`least_squares` refits each site to the dense network's activations, as if nothing else were cut.
Here the sites of one architecture are refitted in the order of the layers, each to what really
reaches it: with x̃ the pruned network's activations, y the dense site's output and e the difference
of the hidden states that has built up so far (dense minus pruned), the projection minimises
Σ ‖y + e - W' x̃‖² + λ‖W' - W₀‖², so that a site also makes up for the ones before it. W₀ is the
repaired projection without this step. Dense sites are refitted too: their inputs changed as well.
(SparseGPT, Frantar & Alistarh 2023, arXiv 2301.00774, and SliceGPT compress on the compressed
network's inputs; the error term is Gram-based error feedback as in Qronos-style rounding.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from stages.architecture import Architecture, Kind, LayerWidth, Site
from stages.evaluate.calibrate.whitening import lower_factor
from stages.evaluate.network.batch import Batch
from stages.evaluate.network.elastic import ElasticNetwork
from stages.evaluate.network.repair import Repair

Projections = dict[Site, Tensor]

VERSION = 2
"""The version of the projections, set by hand: raise it when they change."""


def repair_again(
    network: ElasticNetwork,
    repair: Repair,
    architecture: Architecture,
    batches: Sequence[Batch],
    damping: float,
) -> Projections:
    """Projections (D, kept) of every site that the architecture keeps, float32 on the network's device.

    `repair`, the first one, gives W₀. Memory: the hidden states of all batches twice, and one site's
    Gram matrix.
    """
    found: Projections = {}
    on_device = [batch.to(network.device) for batch in batches]
    with torch.inference_mode():
        dense = [network.embed(batch.tokens) for batch in on_device]
        pruned = [hidden.clone() for hidden in dense]
        for index in tqdm(range(network.shape.layers), desc="repair again", unit="layer", leave=False):
            for kind in Kind:
                site = Site(index, kind)
                width = architecture.widths[index]
                _site(network, repair, site, width, on_device, dense, pruned, damping, found)
    return found


def _site(
    network: ElasticNetwork,
    repair: Repair,
    site: Site,
    width: LayerWidth,
    batches: Sequence[Batch],
    dense: list[Tensor],
    pruned: list[Tensor],
    damping: float,
    found: Projections,
) -> None:
    """Refit one site, and carry both networks' hidden states past it."""
    kept = width.keeps(site.kind)
    full, scale = network.shape.dense_width, network.recipe.residual_scale
    gram = cross = None
    activations = []
    for place, batch in enumerate(batches):
        rope = network.rope(batch.positions)
        x = network.activations(site, full, dense[place], batch.mask, rope)
        after = network.output(site, full, x, onto=dense[place])
        if kept:
            own = network.activations(site, width, pruned[place], batch.mask, rope)
            activations.append(own)
            flat = own.flatten(0, 1).float()
            goal = (after - pruned[place]).flatten(0, 1).float() / scale - _bias(network, site)
            gram = flat.T @ flat if gram is None else gram.addmm_(flat.T, flat)
            cross = flat.T @ goal if cross is None else cross.addmm_(flat.T, goal)
        dense[place] = after
    if gram is None or cross is None:
        return
    start = network.projection(site, width, repair).to(torch.float64)
    moments = gram.double()
    level = damping * moments.diagonal().mean() + torch.finfo(torch.float32).tiny
    lower = lower_factor(moments + level * torch.eye(len(moments), dtype=moments.dtype, device=gram.device))
    found[site] = torch.cholesky_solve(cross.double() + level * start.T, lower).T.float().contiguous()
    for place, own in enumerate(activations):
        step = F.linear(own, found[site].to(own.dtype)) + _bias(network, site).to(own.dtype)
        pruned[place] = pruned[place].add(step, alpha=scale)


def _bias(network: ElasticNetwork, site: Site) -> Tensor:
    layer = network.layers[site.layer]
    bias = layer.o_bias if site.kind is Kind.ATTENTION else layer.down_bias
    return network.embedding.new_zeros(()) if bias is None else bias
