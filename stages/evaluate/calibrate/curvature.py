"""Curvature: what cutting each site to each width is expected to cost, without measuring a cut.

Cutting a site to a width changes the hidden states after it by δ (repair included), and the loss, to
second order, by ½ δᵀHδ; at a minimum there is no first-order term. H is taken as the Fisher
information of the model's own predictions, F = E[g gᵀ], g the gradient of a sequence's loss on tokens
that the model itself draws (LeCun et al. 1990, "Optimal brain damage"; Kunstner et al. 2019, arXiv
1905.12558, for drawn tokens against the text's own). With a_t = g_t·δ_t at token t the expected rise is

    ½ Σ_t a_t² / predictions    nats a token.

All widths that are prefixes of one order of a site's elements (`whitening`) come of one pass. With x its
activations in that order, W its output projection and R the whitening, least squares on the first c
elements leaves Y z[c:], where z = R x and Y R[c:, c:] = W[:, c:]. So a_t at every c is a cumulative sum
of (gᵀ W R⁻¹) ∘ z from the last element back; without a repair the same with R = 1.

Where a norm N stands behind W, δ_t = N(W' x_kept) - N(W x), with N as it is: W' x_kept is the sum of the
first c elements of z, each times its column of W R⁻¹, and those of all widths add up in one product.

One backward pass over the calibration text. Memory beyond the weights and the repair's whitenings: the
hidden states of one batch before every layer, one layer's gradients, one whitening.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from stages.architecture import Kind, Site
from stages.evaluate.calibrate.importance.taylor import loss_gradient
from stages.evaluate.calibrate.whitening import heads_of, orders_of, prefix_order, prefix_size
from stages.evaluate.network.batch import Batch
from stages.evaluate.network.elastic import ElasticNetwork
from stages.evaluate.network.repair import Repair
from stages.evaluate.results.damage import DamageCurves
from stages.progress import Progress
from stages.sample.space import Option, options

STEPS = 48
"""Widths of an MLP at which its curve is computed, evenly from one step below dense to dropped."""

VERSION = 3
"""The version of the curves, set by hand: raise it when they change."""


def expected_curves(network: ElasticNetwork, repair: Repair, batches: Sequence[Batch]) -> DamageCurves:
    """The expected damage curve of every site, cut and repaired."""
    shape = network.shape
    widths = {
        site: options(shape, site, max(1, shape.widths[site.layer].channels // STEPS))[1:]
        for site in shape.sites()
    }
    squares = {
        site: torch.zeros(len(own), device=network.device, dtype=torch.float64)
        for site, own in widths.items()
    }
    predictions = 0
    for number, batch in enumerate(Progress(batches, desc="curvature", unit="batch", leave=False)):
        rises_by_site = token_rises(network, repair, batch.to(network.device), widths, number)
        for site, rises in rises_by_site.items():
            squares[site] += rises.double().square().sum(0)
        predictions += batch.targets.numel()
    return DamageCurves(
        {
            site: [
                (option.ratio, 0.5 * float(total) / predictions)
                for option, total in zip(widths[site], totals, strict=True)
            ]
            for site, totals in squares.items()
        }
    )


def token_rises(
    network: ElasticNetwork,
    repair: Repair,
    batch: Batch,
    widths: Mapping[Site, Sequence[Option]],
    seed: int,
) -> dict[Site, Tensor]:
    """a_t (tokens, widths) of every site, in nats, by its widths; drawn tokens by `seed`."""
    shape = network.shape
    with torch.no_grad():
        last, before = network.hidden_states(shape.dense(), batch, keep=range(shape.layers))
        drawn = replace(batch, targets=_drawn(network, last, batch, seed))
    gradient = loss_gradient(network, last, drawn, 1)
    places, scale = network.places(batch), network.recipe.residual_scale
    found: dict[Site, Tensor] = {}
    for index in reversed(range(shape.layers)):
        hidden, dense = before.pop(index).requires_grad_(True), shape.widths[index]
        states, activations = [hidden], {}
        for site in (Site(index, kind) for kind in Kind if dense.keeps(kind)):
            activations[site] = network.activations(site, dense, hidden, places)
            hidden = network.output(site, dense, activations[site], onto=hidden)
            hidden.retain_grad()
            states.append(hidden)
        if not activations:
            continue
        hidden.backward(gradient)
        with torch.no_grad():
            for (site, x), after in zip(reversed(activations.items()), reversed(states), strict=False):
                assert after.grad is not None
                found[site] = scale * _rises(network, repair, site, x, after.grad, widths[site])
        assert states[0].grad is not None
        gradient = states[0].grad
    return found


def _drawn(network: ElasticNetwork, last: Tensor, batch: Batch, seed: int) -> Tensor:
    """Targets (N,) drawn from the network's own predictions."""
    generator = torch.Generator(network.device).manual_seed(seed)
    drawn = []
    for rows in last.flatten(0, 1)[batch.at].split(256):
        below = network.logits(rows).float().softmax(-1).cumsum(-1)  # on a CPU faster than torch.multinomial
        at = torch.rand(len(rows), 1, generator=generator, device=network.device) * below[:, -1:]
        drawn.append(torch.searchsorted(below, at)[:, 0].clamp(max=below.shape[1] - 1))
    return torch.cat(drawn)


def _rises(
    network: ElasticNetwork,
    repair: Repair,
    site: Site,
    x: Tensor,
    gradient: Tensor,
    widths: Sequence[Option],
) -> Tensor:
    """What each width of a site changes at every token, (tokens, widths), along the gradient."""
    shape, bias = network.shape, network.output_bias(site)
    norm = network.layers[site.layer].norm_after(site.kind)
    x, gradient = x.flatten(0, 1).float(), gradient.flatten(0, 1).float()
    weight = network.output_weight(site).float()  # (D, n)
    rises = x.new_empty(len(x), len(widths))
    dropped = [
        place for place, option in enumerate(widths) if not prefix_size(shape, site.kind, option.width)
    ]
    for heads in orders_of(shape, site):
        asked = [place for place, option in enumerate(widths) if heads_of(site.kind, option.width) == heads]
        asked += dropped  # all elements from the first on, in whatever order
        order = prefix_order(shape, site, heads).to(x.device)
        sizes = [prefix_size(shape, site.kind, widths[place].width) for place in asked]
        given = x[:, order], gradient, weight[:, order], repair.whitening(site, heads)
        if norm is None:
            rises[:, asked] = -_beyond(*given)[:, sizes]
        else:
            rises[:, asked] = _normed(*given, sizes, bias, partial(network.norm, weight=norm))
    if bias is not None and norm is None:  # a dropped sublayer takes its bias along
        rises[:, dropped] -= (gradient @ bias.float())[:, None]
    return rises


def _beyond(x: Tensor, gradient: Tensor, weight: Tensor, whitening: Tensor | None) -> Tensor:
    """What the elements from each one on contribute, (tokens, n), if those before it make up for them."""
    if whitening is None:
        along = gradient @ weight
    else:
        x = x @ whitening.T
        if len(gradient) > len(weight):  # R⁻¹ costs least on the side that has fewer rows
            along = gradient @ _without(weight, whitening)
        else:
            along = _without(gradient @ weight, whitening)
    return (along * x).flip(1).cumsum(1).flip(1)


def _normed(
    x: Tensor,
    gradient: Tensor,
    weight: Tensor,
    whitening: Tensor | None,
    sizes: Sequence[int],
    bias: Tensor | None,
    norm: Callable[[Tensor], Tensor],
) -> Tensor:
    """What keeping the first elements, `sizes` of them, changes of what is normed: (tokens, sizes)."""
    if whitening is not None:
        x, weight = x @ whitening.T, _without(weight, whitening)
    made = torch.zeros_like(gradient) if bias is None else bias.float().expand_as(gradient).clone()
    along, before = {0: torch.zeros_like(gradient[:, 0])}, 0  # without its elements the sublayer is gone
    for size in sorted({*sizes, len(weight[0])} - {0}):
        made.addmm_(x[:, before:size], weight[:, before:size].T)
        along[size], before = (gradient * norm(made)).sum(1), size
    return torch.stack([along[size] - along[len(weight[0])] for size in sizes], dim=1)


def _without(rows: Tensor, whitening: Tensor) -> Tensor:
    """Rows (r, n) times R⁻¹."""
    found: Tensor = torch.linalg.solve_triangular(whitening.T, rows.T, upper=True).T
    return found
