"""Taylor importance: what a loss of one unit does to the loss, by the gradients of the weights.

``taylor``, first order: Σ |w · ∂L/∂w| over the unit's weights, L the mean next-token loss of the
calibration text. LLM-Pruner's element-wise criterion (Ma et al. 2023, arXiv 2305.11627, eq. 5 to
first order), as the paper uses it.

``taylor-second``: Σ ½ (w · ∂L_b/∂w)² over the unit's weights and the calibration batches b: the
diagonal of the Hessian, by the empirical Fisher information (LeCun et al. 1990, "Optimal brain
damage"; Theis et al. 2018, arXiv 1801.05787).

Memory: each weight's gradient is folded into scores and freed as soon as the backward pass has made
it, so the gradients of about one layer are held at a time. Only first order over several batches
must add gradients up first, and then holds one for every decoder weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stages.evaluate.elastic import Batch, ElasticNetwork
from stages.evaluate.importance import UnitScores

Fold = Callable[[Tensor], Tensor]


def taylor(network: ElasticNetwork, batches: Sequence[Batch], order: int = 1) -> UnitScores:
    """Scores of first or second `order` over calibration batches. The network's units are unsorted."""
    shape = network.shape
    scores = UnitScores(
        torch.zeros(shape.layers, shape.kv_groups, shape.heads_per_group),
        torch.zeros(shape.layers, shape.kv_groups),
        torch.zeros(shape.layers, shape.channels),
    )
    folded = _folds(network, scores)
    predictions = sum(batch.targets.numel() for batch in batches)
    salience = _first_order if order == 1 else _second_order
    handles = []
    try:
        for weight, _, _ in folded:
            weight.requires_grad_(True)
        for index, batch in enumerate(batches):
            if order == 2 or index == len(batches) - 1:
                handles = [
                    weight.register_post_accumulate_grad_hook(_folding(total, fold, salience))
                    for weight, total, fold in folded
                ]
            loss = -network.log_likelihoods(shape.dense(), batch.to(network.device)).sum() / predictions
            loss.backward()
            for handle in handles:
                handle.remove()
    finally:
        for handle in handles:
            handle.remove()
        for weight, _, _ in folded:
            weight.requires_grad_(False)
            weight.grad = None
    return scores


def _folds(network: ElasticNetwork, scores: UnitScores) -> list[tuple[Tensor, Tensor, Fold]]:
    """Every decoder weight, the scores that it adds to, and how its elements fall to units."""
    shape = network.shape
    g, h, d = shape.kv_groups, shape.heads_per_group, shape.head_dim

    def by_head_rows(s: Tensor) -> Tensor:  # (G, H*d, D) -> (G, H)
        return s.view(g, h, d, -1).sum((2, 3))

    def by_head_columns(s: Tensor) -> Tensor:  # (D, G, H*d) -> (G, H)
        return s.view(-1, g, h, d).sum((0, 3))

    def by_group(s: Tensor) -> Tensor:  # (G*d, D) -> (G,)
        return s.view(g, -1).sum(1)

    folds: list[tuple[Tensor, Tensor, Fold]] = []
    for index, layer in enumerate(network.layers):
        heads, groups, channels = scores.heads[index], scores.groups[index], scores.channels[index]
        folds += [
            (layer.q, heads, by_head_rows),
            (layer.o, heads, by_head_columns),
            (layer.k, groups, by_group),
            (layer.v, groups, by_group),
            (layer.gate, channels, lambda s: s.sum(1)),
            (layer.up, channels, lambda s: s.sum(1)),
            (layer.down, channels, lambda s: s.sum(0)),
        ]
    return folds


def _first_order(product: Tensor) -> Tensor:
    return product.abs_()


def _second_order(product: Tensor) -> Tensor:
    return product.square_().mul_(0.5)


def _folding(total: Tensor, fold: Fold, salience: Fold) -> Callable[[Tensor], None]:
    def hook(weight: Tensor) -> None:
        assert weight.grad is not None
        product = (weight.detach() * weight.grad).float()
        total.add_(fold(salience(product)).cpu())
        weight.grad = None

    return hook
