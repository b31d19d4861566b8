"""What calibration text does inside the dense network: second moments of every unit's activations.

One pass, layer by layer. The activations of a site are the inputs of its output projection: the mixed
heads before o_proj, the gated channels before down_proj. Where a norm stands behind the projection, each
token's are multiplied by what that norm multiplies its output by: so a token counts as much as it adds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.architecture import ModelShape, Site
from stages.evaluate.calibrate.whitening import elements
from stages.evaluate.network.batch import Batch
from stages.evaluate.network.decoder import Decoder
from stages.evaluate.network.places import Places
from stages.progress import Progress


@dataclass(frozen=True)
class SiteStatistics:
    """Moments of one site's activations x (units' elements), in the checkpoint's own order of units.

    gram (n, n): the sum of x xᵀ over tokens, float32; total (n,): the sum of x, float64.
    """

    gram: Tensor
    total: Tensor
    tokens: int

    def square_sums(self) -> Tensor:
        """Sum of squares (n,) of each element over the tokens."""
        return self.gram.diagonal().double()

    def variances(self) -> Tensor:
        """Sample variance (n,) of each element over the tokens."""
        mean = self.total / self.tokens
        return (self.square_sums() - self.tokens * mean.square()).clamp(min=0) / max(1, self.tokens - 1)


VERSION = 1
"""The version of the moments, set by hand: raise it when they change."""


def size_bytes(shape: ModelShape) -> int:
    """Bytes of all sites' Gram matrices."""
    return 4 * sum(elements(shape, site) ** 2 for site in shape.sites())


def gather(network: Decoder, batches: Sequence[Batch]) -> Iterator[tuple[Site, SiteStatistics]]:
    """Run the dense network over calibration batches, layer by layer, and sum each site's moments.

    `network` has its units in the checkpoint's order. Memory: the hidden states of all batches and one
    site's Gram matrix, 4 n² bytes in float32 (SmolLM2-135M: 9 MB, a 7B Llama: 485 MB); all sites' are
    0.32 and 17 GB.
    """
    shape = network.shape
    on_device = [batch.to(network.device) for batch in batches]
    with torch.inference_mode():
        places = [network.places(batch) for batch in on_device]
        hidden = [network.embed(batch.tokens) for batch in on_device]
    for site in Progress(list(shape.sites()), desc="calibration", unit="site", leave=False):
        yield _site(network, site, on_device, places, hidden)


def _site(
    network: Decoder, site: Site, batches: Sequence[Batch], places: Sequence[Places], hidden: list[Tensor]
) -> tuple[Site, SiteStatistics]:
    """One site's moments; carries the hidden states past it."""
    width = network.shape.widths[site.layer]
    moments: tuple[Tensor, Tensor] | None = None
    with torch.inference_mode():
        for index, here in enumerate(places):
            x = network.activations(site, width, hidden[index], here)
            share = network.share(site, width, x)
            moments = _added(moments, (x if share is None else x.float() * share).flatten(0, 1))
            hidden[index] = network.output(site, width, x, hidden[index], in_place=True)
    assert moments is not None  # there is a batch
    return site, SiteStatistics(*moments, sum(batch.tokens.numel() for batch in batches))


def _added(moments: tuple[Tensor, Tensor] | None, x: Tensor) -> tuple[Tensor, Tensor]:
    """Moments and those of activations x (tokens, n)."""
    wide = x.float()
    if moments is None:
        return wide.T @ wide, wide.sum(0, dtype=torch.float64)
    gram, total = moments
    return gram.addmm_(wide.T, wide), total.add_(wide.sum(0, dtype=torch.float64))
