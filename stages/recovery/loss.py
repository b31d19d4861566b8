"""Losses over a vocabulary, in blocks of tokens, so that no logits are held but one block's.

The gradients with respect to the hidden states and the head are computed with the loss, block by block: a
block's logits are gone before the next one's are made. Softmax and sums are in float32.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = {"cpu": 512, "cuda": 4096}
"""Tokens whose logits are held at once."""


def divergence(hidden: Tensor, head: Tensor, teacher: Tensor, teacher_head: Tensor, scale: float) -> Tensor:
    """Forward KL divergence of a student's predictions from a teacher's, in nats a token.

    Mean of Σ p (log p - log q) over tokens, p of the teacher, at temperature 1 (Hinton et al. 2015, arXiv
    1503.02531). hidden (N, D) are the student's normed last hidden states, head (V, D) and then `scale` what
    makes logits of them; of the teacher's (N, D) its head makes them alone. No gradient goes to the teacher.
    """
    found: Tensor = _Blocks.apply(hidden, head, (teacher, teacher_head), scale)  # type: ignore[no-untyped-call]
    return found


def cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, scale: float) -> Tensor:
    """Negative log-likelihood of targets (N,), in nats a token; the rest as in `divergence`."""
    found: Tensor = _Blocks.apply(hidden, head, targets, scale)  # type: ignore[no-untyped-call]
    return found


class _Blocks(torch.autograd.Function):
    """The mean loss of N tokens, and its gradients, in one pass over blocks of them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, goal: Any, scale: float) -> Tensor:
        count, block = len(hidden), BLOCK[hidden.device.type]
        weight = head.to(hidden.dtype)
        of_block: Any = _from_targets
        goals, rest = goal, []
        if not isinstance(goal, Tensor):
            of_block = _from_teacher
            goals, *rest = (tensor.to(hidden.dtype) for tensor in goal)
        if hidden.is_cuda:
            of_block = _compiled(of_block)
        by_hidden = torch.empty_like(hidden)
        by_head = torch.zeros_like(head, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, count, block):
                here = slice(start, start + block)
                loss, slope = of_block(hidden[here], weight, scale, scale / count, goals[here], *rest)
                total += loss
                by_hidden[here] = slope @ weight
                if by_head is not None:
                    by_head += slope.T @ hidden[here]
        ctx.save_for_backward(by_hidden, by_head)
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        by_hidden, by_head = ctx.saved_tensors
        outer = gradients[0]
        return by_hidden * outer, None if by_head is None else by_head * outer, None, None


def _from_targets(
    hidden: Tensor, weight: Tensor, scale: float, share: float, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """A block's summed negative log-likelihood, and `share` of its slope by the unscaled logits (N, V)."""
    log_q = (hidden @ weight.T).float().mul_(scale).log_softmax(-1)
    places = targets[:, None]
    loss = -log_q.gather(1, places).sum()
    slope = log_q.exp_().scatter_add_(1, places, -torch.ones_like(places, dtype=log_q.dtype))
    return loss, slope.mul_(share).to(hidden.dtype)


def _from_teacher(
    hidden: Tensor, weight: Tensor, scale: float, share: float, states: Tensor, teacher_head: Tensor
) -> tuple[Tensor, Tensor]:
    """A block's summed divergence from a teacher, and `share` of its slope by the unscaled logits (N, V)."""
    log_q = (hidden @ weight.T).float().mul_(scale).log_softmax(-1)
    log_p = (states @ teacher_head.T).float().log_softmax(-1)
    p = log_p.exp()
    loss = (p * log_p.sub_(log_q)).sum()
    return loss, log_q.exp_().sub_(p).mul_(share).to(hidden.dtype)


@cache
def _compiled(of_block: Any) -> Any:
    """What is done to logits as few passes over memory: apart they take longer than all of the student."""
    return torch.compile(of_block, dynamic=False)
