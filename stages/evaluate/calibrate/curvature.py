"""Curvature: what cutting each site to each width is expected to cost, without measuring a cut.

Cutting a site to a width changes the hidden states after it by δ (repair included), and the loss, to
second order, by ½ δᵀHδ; at a minimum there is no first-order term. H is taken as the Fisher
information of the model's own predictions, F = E[g gᵀ], g the gradient of a sequence's loss on tokens
that the model itself draws (LeCun et al. 1990, "Optimal brain damage"; Kunstner et al. 2019, arXiv
1905.12558, for drawn tokens against the text's own). With a_t = g_t·δ_t at token t the expected rise is

    ½ Σ_t a_t² / predictions    nats a token.

All widths of an MLP come of one pass. With x its activations, W its output projection and
G + λI = L Lᵀ the damped Gram matrix of the sorted units, z = L⁻¹x is what each unit adds to those
before it, and least squares on the first c units leaves W L[:, c:] z[c:]. So a_t at every c is a
cumulative sum of (gᵀW L) ∘ z from the last unit back; without a repair the same with L = 1.

One backward pass over the calibration text. Memory beyond the weights: the hidden states of one
batch before every layer, one layer's gradients, and where sites are repaired the factors L, 4 C²
bytes a layer (SmolLM2-135M: 0.28 GB).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from stages.architecture import Kind, LayerWidth, Site
from stages.evaluate.calibrate.importance.taylor import loss_gradient
from stages.evaluate.network.batch import Batch
from stages.evaluate.network.elastic import ElasticNetwork
from stages.evaluate.network.repair import Repair
from stages.evaluate.results.damage import DamageCurves
from stages.sample.space import Option, options

STEPS = 48
"""Widths of an MLP at which its curve is computed, evenly from one step below dense to dropped."""

VERSION = 1
"""The version of the curves, set by hand: raise it when they change."""


def expected_curves(network: ElasticNetwork, repair: Repair, batches: Sequence[Batch]) -> DamageCurves:
    """The expected damage curve of every site, cut and repaired."""
    shape = network.shape
    widths = {kind: options(shape, kind, max(1, shape.channels // STEPS))[1:] for kind in Kind}
    squares = {
        site: torch.zeros(len(widths[site.kind]), device=network.device, dtype=torch.float64)
        for site in shape.sites()
    }
    factors = {site: repair.factor(site) for site in shape.sites() if site.kind is Kind.MLP}
    predictions = 0
    for number, batch in enumerate(tqdm(batches, desc="curvature", unit="batch", leave=False)):
        for site, rises in token_rises(
            network, repair, batch.to(network.device), widths, factors, number
        ).items():
            squares[site] += rises.double().square().sum(0)
        predictions += batch.targets.numel()
    return DamageCurves(
        {
            site: [
                (option.ratio, 0.5 * float(total) / predictions)
                for option, total in zip(widths[site.kind], totals, strict=True)
            ]
            for site, totals in squares.items()
        }
    )


def token_rises(
    network: ElasticNetwork,
    repair: Repair,
    batch: Batch,
    widths: dict[Kind, list[Option]],
    factors: Mapping[Site, Tensor | None],
    seed: int,
) -> dict[Site, Tensor]:
    """a_t (tokens, widths) of every site, in nats, by the widths of its kind; drawn tokens by `seed`."""
    shape, dense = network.shape, network.shape.dense_width
    with torch.no_grad():
        last, before = network.hidden_states(shape.dense(), batch, keep=range(shape.layers))
        drawn = replace(batch, targets=_drawn(network, last, batch, seed))
    gradient = loss_gradient(network, last, drawn, 1)
    rope, scale = network.rope(batch.positions), network.recipe.residual_scale
    found: dict[Site, Tensor] = {}
    for index in reversed(range(shape.layers)):
        attention, mlp = Site(index, Kind.ATTENTION), Site(index, Kind.MLP)
        start = before.pop(index).requires_grad_(True)
        mixed = network.activations(attention, dense, start, batch.mask, rope)
        middle = network.output(attention, dense, mixed, onto=start)
        middle.retain_grad()
        gated = network.activations(mlp, dense, middle, batch.mask, rope)
        network.output(mlp, dense, gated, onto=middle).backward(gradient)
        assert middle.grad is not None
        assert start.grad is not None
        with torch.no_grad():
            of_mlp = _of_mlp(network, mlp, gated, gradient, widths[Kind.MLP], factors[mlp])
            of_attention = _of_attention(
                network, repair, attention, mixed, middle.grad, widths[Kind.ATTENTION]
            )
            found[mlp], found[attention] = scale * of_mlp, scale * of_attention
        gradient = start.grad
    return found


def _drawn(network: ElasticNetwork, last: Tensor, batch: Batch, seed: int) -> Tensor:
    """Targets (N,) drawn from the network's own predictions."""
    generator = torch.Generator(network.device).manual_seed(seed)
    drawn = [
        torch.multinomial(network.logits(rows).float().softmax(-1), 1, generator=generator)[:, 0]
        for rows in last.flatten(0, 1)[batch.at].split(256)
    ]
    return torch.cat(drawn)


def _of_mlp(
    network: ElasticNetwork,
    site: Site,
    x: Tensor,
    gradient: Tensor,
    widths: list[Option],
    lower: Tensor | None,
) -> Tensor:
    x, gradient = x.flatten(0, 1).float(), gradient.flatten(0, 1).float()
    layer = network.layers[site.layer]
    down = layer.down.float()
    if lower is not None:
        down = down @ lower
        x = torch.linalg.solve_triangular(lower, x.T, upper=False).T
    each = (gradient @ down).mul_(x)  # (tokens, C)
    beyond = each.flip(1).cumsum(1).flip(1)  # [:, c]: what the units from c on contribute
    rises = -beyond[:, [option.width[0] for option in widths]]
    if layer.down_bias is not None:  # a dropped sublayer takes its bias along
        gone = torch.tensor([option.width[0] == 0 for option in widths], device=x.device)
        rises -= (gradient @ layer.down_bias.float())[:, None] * gone
    return rises


def _of_attention(
    network: ElasticNetwork, repair: Repair, site: Site, x: Tensor, gradient: Tensor, widths: list[Option]
) -> Tensor:
    x, gradient = x.flatten(0, 1).float(), gradient.flatten(0, 1).float()
    shape, layer = network.shape, network.layers[site.layer]
    whole = layer.o.float()  # (D, G, H*d)
    found = []
    for option in widths:
        groups, heads = option.width
        change = -whole
        if groups and heads:
            width = LayerWidth(groups, heads, shape.channels)
            kept = network.projection(site, width, repair).float()
            rows = heads * shape.head_dim
            change[:, :groups, :rows] += kept.view(shape.hidden, groups, rows)
        rises = (gradient @ change.flatten(1)).mul_(x).sum(1)
        if layer.o_bias is not None and not groups:
            rises -= gradient @ layer.o_bias.float()
        found.append(rises)
    return torch.stack(found, dim=1)
