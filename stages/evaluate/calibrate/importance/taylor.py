"""Taylor importance: what a loss of one unit does to the loss, by the gradients of the weights.

``taylor``, first order: Σ |w · ∂L/∂w| over the unit's weights, L the mean next-token loss of the
calibration text. LLM-Pruner's element-wise criterion (Ma et al. 2023, arXiv 2305.11627, eq. 5 to
first order), as the paper uses it.

``taylor-second``: Σ ½ (w · ∂L_b/∂w)² over the unit's weights and the calibration batches b: the
diagonal of the Hessian, by the empirical Fisher information (LeCun et al. 1990, "Optimal brain
damage"; Theis et al. 2018, arXiv 1801.05787).

Memory beyond the weights: the backward pass goes layer by layer, over all batches each, and runs a
layer again from the hidden states before it. What is held is those states of every layer and
calibration token, one layer's gradients, and one layer's activations of one batch; logits go in
blocks. SmolLM2-135M needs 0.3 GiB for 1,280 tokens in float32; a 7B Llama, by the same formula, 2.4
beyond its 25 (`python -m tests.benchmarks.memory` measures the one and computes the other).
LLM-Pruner, which holds every weight's gradient and every layer's activations, is reported to need
80 GB for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stages.architecture import ModelShape
from stages.evaluate.calibrate.importance import CalibrationData, Importance
from stages.evaluate.network.batch import Batch
from stages.evaluate.network.decoder import Decoder
from stages.evaluate.network.elastic import DenseNetwork
from stages.evaluate.results.scores import UnitScores

Fold = Callable[[Tensor], Tensor]

GRADIENTS_AT_ONCE = 256
"""Predictions whose logits and their gradients over the whole vocabulary are held at once."""


@dataclass(frozen=True)
class _Sums:
    """Scores as they add up: heads (layers, G, H), groups (layers, G), channels (layers, C), on the CPU."""

    heads: Tensor
    groups: Tensor
    channels: Tensor


def taylor(network: DenseNetwork, batches: Sequence[Batch], order: int = 1) -> UnitScores:
    """Scores of first or second `order` over calibration batches."""
    shape = network.shape
    scores = _Sums(
        torch.zeros(shape.layers, shape.kv_groups, shape.heads_per_group),
        torch.zeros(shape.layers, shape.kv_groups),
        torch.zeros(shape.layers, shape.channels),
    )
    on_device = [batch.to(network.device) for batch in batches]
    predictions = sum(batch.targets.numel() for batch in batches)
    states, gradients = [], []
    for batch in on_device:
        with torch.no_grad():
            last, before = network.hidden_states(shape.dense(), batch, keep=range(shape.layers))
        states.append(before)
        gradients.append(loss_gradient(network, last, batch, predictions))
    for index in reversed(range(shape.layers)):
        inputs = [before.pop(index) for before in states]
        if not any(shape.widths[index]):
            continue
        gradients = _score_layer(network, index, on_device, inputs, gradients, scores, order)
    return UnitScores.of(scores.heads, scores.groups, scores.channels)


def loss_gradient(network: Decoder, last: Tensor, batch: Batch, predictions: int) -> Tensor:
    """Gradient (B, L, D) of a batch's part of the mean loss by the last hidden states."""
    last.requires_grad_(True)
    chunks = zip(batch.at.split(GRADIENTS_AT_ONCE), batch.targets.split(GRADIENTS_AT_ONCE), strict=True)
    for at, targets in chunks:
        (-network.read(last, replace(batch, at=at, targets=targets)).sum() / predictions).backward()
    assert last.grad is not None
    return last.grad


def _score_layer(
    network: DenseNetwork,
    index: int,
    batches: Sequence[Batch],
    inputs: list[Tensor],
    gradients: Sequence[Tensor],
    scores: _Sums,
    order: int,
) -> list[Tensor]:
    """Add a layer's scores, from the states before it and the gradients by those after it, a batch each.

    Returns the gradients by the states before it.
    """
    folds = _folds(network, index, scores)
    found = []
    try:
        for weight, _, _ in folds:
            weight.requires_grad_(True)
        for batch, before, gradient in zip(batches, inputs, gradients, strict=True):
            before.requires_grad_(True)
            places = network.places(batch)
            after = network.run_layer(index, network.shape.widths[index], before, places)
            after.backward(gradient)
            assert before.grad is not None
            found.append(before.grad)
            if order == 2:
                _fold(folds, _second_order)
        if order == 1:
            _fold(folds, _first_order)
    finally:
        for weight, _, _ in folds:
            weight.requires_grad_(False)
            weight.grad = None
    return found


def _folds(network: DenseNetwork, index: int, scores: _Sums) -> list[tuple[Tensor, Tensor, Fold]]:
    """A layer's weights, the scores that each adds to, and how its elements fall to units."""
    width, layer, d = network.shape.widths[index], network.layers[index], network.shape.head_dim
    g, h, c = width
    heads, groups, channels = (
        scores.heads[index, :g, :h],
        scores.groups[index, :g],
        scores.channels[index, :c],
    )
    of_attention: list[tuple[Tensor, Tensor, Fold]] = [
        (layer.q, heads, lambda s: s.view(g, h, d, -1).sum((2, 3))),  # (G, H*d, D) -> (G, H)
        (layer.o, heads, lambda s: s.view(-1, g, h, d).sum((0, 3))),  # (D, G, H*d) -> (G, H)
        (layer.k, groups, lambda s: s.view(g, -1).sum(1)),  # (G*d, D) -> (G,)
        (layer.v, groups, lambda s: s.view(g, -1).sum(1)),
    ]
    of_mlp: list[tuple[Tensor, Tensor, Fold]] = [
        (layer.gate, channels, lambda s: s.sum(1)),
        (layer.up, channels, lambda s: s.sum(1)),
        (layer.down, channels, lambda s: s.sum(0)),
    ]
    return of_attention * width.has_attention + of_mlp * width.has_mlp


def _fold(folds: Sequence[tuple[Tensor, Tensor, Fold]], salience: Fold) -> None:
    """Turn the weights' gradients into scores, and free them."""
    for weight, total, fold in folds:
        assert weight.grad is not None
        product = (weight.detach() * weight.grad).float()
        total.add_(fold(salience(product)).cpu())
        weight.grad = None


def _first_order(product: Tensor) -> Tensor:
    return product.abs_()


def _second_order(product: Tensor) -> Tensor:
    return product.square_().mul_(0.5)


def held_bytes(shape: ModelShape, tokens: int, batch_tokens: int, element_bytes: int) -> int:
    """The most that `taylor` holds beyond the weights, on `tokens` calibration tokens.

    The states before and after every layer, and then the larger of: logits of a block of predictions,
    with their float32 logarithms and the gradients of both; or one layer's gradients, one of its
    weights times its gradient in float32, and the activations of a batch that autograd keeps.
    """
    states = (shape.layers + 2) * tokens * shape.hidden * element_bytes
    predictions = min(GRADIENTS_AT_ONCE, batch_tokens)
    logits = predictions * shape.vocabulary * (2 * element_bytes + 2 * 4)
    weights = max(shape.layer_parameters)
    query, key = (n * shape.head_dim for n in (shape.kv_groups * shape.heads_per_group, shape.kv_groups))
    activations = batch_tokens * element_bytes * (8 * shape.hidden + 5 * query + 5 * key + 6 * shape.channels)
    layer = weights * element_bytes + 2 * 4 * shape.hidden * shape.channels + activations
    return states + max(logits, layer)


def _importance(order: int, source: str) -> Importance:
    def score(data: CalibrationData) -> UnitScores:
        return taylor(data.network, data.batches, order)

    return Importance(score, source, by_gradient=True, held_bytes=held_bytes)


FIRST_ORDER = _importance(1, "LLM-Pruner, Ma et al. 2023, arXiv 2305.11627, eq. 5 to first order")
SECOND_ORDER = _importance(2, "LeCun et al. 1990; Theis et al. 2018, arXiv 1801.05787")
