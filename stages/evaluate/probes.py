"""Probes: what each site cut alone does to the model's own predictions.

Curvature is exact for small cuts; a probe tells how far a strong one departs from it. The damage of a
cut is the Kullback-Leibler divergence of the cut network's predictions from the dense network's,

    KL = Σ_v p_v log p_v - (pᵀE)·h + log Σ_v exp (E h)_v    nats a token,

with p the dense probabilities, E the head and h the cut network's normed last states: what the loss
would rise by on text that the dense model itself writes. No token's luck enters it, so that few tokens
tell it well. The first two factors are the same for all probes, and so are the layers before the site.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from stages.architecture import Site
from stages.evaluate.damage import Points
from stages.evaluate.elastic import Batch, ElasticNetwork
from stages.evaluate.fused import rms_norm
from stages.evaluate.reconstruction import Reconstruction
from stages.sample.space import Option, Space

_ROWS = 256
"""Predictions whose logits are held at once."""


def probe(network: ElasticNetwork, batches: Sequence[Batch], ratios: Sequence[float]) -> dict[Site, Points]:
    """(ratio, damage) of every site, cut alone to the widths nearest `ratios`; damages in nats a token.

    The network is sorted, and repairs if it has a repair. Costs as many forward passes as there are
    probes, each through the layers from its site on. Memory beyond the weights: the hidden states of one
    batch before every layer.
    """
    shape, dense = network.shape, network.shape.dense()
    space = Space(shape, 1, {})
    cuts: list[tuple[Site, Option]] = [
        (site, option)
        for site in shape.sites()
        for option in dict.fromkeys(space.nearest(site.kind, ratio) for ratio in ratios)
        if option.ratio > 0
    ]
    if isinstance(network.repair, Reconstruction):
        network.repair.prepare(space.architecture({site: option}) for site, option in cuts)
    totals = [0.0] * len(cuts)
    predictions = sum(batch.targets.numel() for batch in batches)
    with torch.no_grad(), tqdm(total=len(cuts) * len(batches), desc="probes", unit="cut", leave=False) as bar:
        for batch in batches:
            at = batch.to(network.device)
            last, before = network.hidden_states(dense, at, keep=range(shape.layers))
            reference = _Dense(network, last, at)
            for place, (site, option) in enumerate(cuts):
                cut = space.architecture({site: option})
                states, _ = network.hidden_states(cut, at, site.layer, before[site.layer])
                totals[place] += reference.divergence(states)
                bar.update()
    found: dict[Site, list[tuple[float, float]]] = {}
    for (site, option), total in zip(cuts, totals, strict=True):
        found.setdefault(site, []).append((option.ratio, total / predictions))
    return {site: sorted(points) for site, points in found.items()}


class _Dense:
    """The dense network's predictions on a batch: what others are compared with."""

    def __init__(self, network: ElasticNetwork, last: Tensor, batch: Batch) -> None:
        self._network = network
        self._at = batch.at
        self._head = network.head.float()
        means, entropies = [], []
        for rows in self._normed(last).split(_ROWS):
            logarithms = (rows @ self._head.T).log_softmax(-1)
            probabilities = logarithms.exp()
            means.append(probabilities @ self._head)
            entropies.append(torch.linalg.vecdot(probabilities, logarithms))
        self._means, self._entropies = torch.cat(means), torch.cat(entropies)

    def divergence(self, last: Tensor) -> float:
        """Σ over predictions of the divergence of those read from last states (B, L, D), in nats."""
        total = 0.0
        pairs = zip(self._normed(last).split(_ROWS), self._means.split(_ROWS), strict=True)
        for rows, means in pairs:
            each = (rows @ self._head.T).logsumexp(-1) - torch.linalg.vecdot(rows, means)
            total += float(each.double().sum())
        return total + float(self._entropies.double().sum())

    def _normed(self, last: Tensor) -> Tensor:
        rows = last.flatten(0, 1)[self._at].float()
        return rms_norm(rows, self._network.final_norm.float(), self._network.eps)
