"""What calibration text does inside the dense network: second moments of every unit's activations.

One streamed pass. The activations of a site are the inputs of its output projection: the mixed
heads before o_proj, the gated channels before down_proj.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from stages.architecture import Kind, ModelShape, Site
from stages.evaluate.network.batch import Batch
from stages.evaluate.network.elastic import DenseNetwork


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


Statistics = dict[Site, SiteStatistics]

VERSION = 1
"""The version of the moments, set by hand: raise it when they change."""


def gather(network: DenseNetwork, batches: Sequence[Batch]) -> Statistics:
    """Run the dense network over calibration batches and sum each site's moments.

    Memory: float32 Gram matrices, 4 n² bytes a site (SmolLM2-135M: 0.32 GB, a 7B Llama: 17 GB).
    """
    shape = network.shape
    sums = {site: _zeros(shape, site, network.device) for site in shape.sites()}
    totals = {site: gram.new_zeros(len(gram), dtype=torch.float64) for site, gram in sums.items()}

    def observe(site: Site, activations: Tensor) -> None:
        x = activations.flatten(0, 1).float()
        sums[site].addmm_(x.T, x)
        totals[site] += x.sum(0, dtype=torch.float64)

    tokens = 0
    with torch.inference_mode():
        for batch in tqdm(batches, desc="calibration", unit="batch", leave=False):
            network.observe(batch.to(network.device), observe)
            tokens += batch.tokens.numel()
    return {site: SiteStatistics(gram, totals[site], tokens) for site, gram in sums.items()}


def _zeros(shape: ModelShape, site: Site, device: torch.device) -> Tensor:
    heads = shape.kv_groups * shape.heads_per_group * shape.head_dim
    size = heads if site.kind is Kind.ATTENTION else shape.channels
    return torch.zeros(size, size, device=device)
