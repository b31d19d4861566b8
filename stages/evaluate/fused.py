"""The element-wise parts of a decoder, each with as few passes over memory as the device allows.

Between the matrix products a decoder is bound by memory traffic: written as separate operations
each of these reads and writes its tensors several times. On a GPU they are compiled (once, for all
widths). On a CPU most of the time goes into fresh memory, so that what is a temporary anyway is
written over. Where gradients are wanted, they run as written.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import torch
import torch.nn.functional as F
from torch import Tensor

P = ParamSpec("P")

torch._dynamo.config.recompile_limit = 64
"""Sizes of one are compiled for themselves: single groups, heads, windows and their combinations."""

VOCABULARY_AT_ONCE = 1024
"""Tokens of the vocabulary whose logits a CPU holds at once: with 1,024 predictions 4 MB, which stay
in its cache. Fixed, because the grouping decides the last digits of a result."""


def _fused(
    on_cpu: Callable[P, Tensor], same: bool = False
) -> Callable[[Callable[P, Tensor]], Callable[P, Tensor]]:
    """Compile a function for the GPU, and run `on_cpu` in its place on a CPU without gradients.

    With `same`, the last dimension of the first argument is the same for all widths: a kernel made
    for its size alone reads memory once where a general one would read it twice.
    """

    def decorate(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
        compiled = torch.compile(function, dynamic=True)

        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> Tensor:
            first = args[0]
            assert isinstance(first, Tensor)
            if torch.is_grad_enabled():
                return function(*args, **kwargs)
            if not first.is_cuda:
                return on_cpu(*args, **kwargs)
            if same:
                torch._dynamo.mark_static(first, first.ndim - 1)
            return compiled(*args, **kwargs)

        return run

    return decorate


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x.float(), x.shape[-1:], eps=eps).to(x.dtype).mul_(weight)


@_fused(_rms_norm, same=True)
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm of x (..., D) in float32, scaled in x's dtype, as transformers computes it."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((second, first), dim=-1).mul_(sin).addcmul_(x, cos)


@_fused(_rotate, same=True)
def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embeddings of x (B, L, heads, d) by angles (B, L, 1, d), halves against each other.

    `sin` carries the sign: it is negative in the first half.
    """
    swapped: Tensor = x.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
    return x * cos + swapped * sin


def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate, inplace=True).mul_(up)


@_fused(_swiglu)
def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up (Shazeer 2020, arXiv 2002.05202). On a CPU `gate` is written over."""
    return F.silu(gate) * up


def log_likelihood(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Natural-log likelihood (N,) of targets (N,) in float32, from normed states (N, D).

    `head` (vocabulary, D) makes their logits.
    """
    if torch.is_grad_enabled():
        return _from_logits(F.linear(hidden, head), targets)
    if hidden.is_cuda:
        return _compiled_from_logits(F.linear(hidden, head), targets)
    return _from_blocks(hidden, head, targets)


def _from_logits(logits: Tensor, targets: Tensor) -> Tensor:
    wide = logits.float()
    chosen = wide.gather(-1, targets[:, None])[:, 0]
    return chosen - torch.logsumexp(wide, dim=-1)


_compiled_from_logits = torch.compile(_from_logits, dynamic=True)


def _from_blocks(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    parts = []  # the logarithm of a sum of exponentials is that of its parts' own
    for block in head.split(VOCABULARY_AT_ONCE):
        logits = F.linear(hidden, block).float()
        top = logits.amax(-1, keepdim=True)
        parts.append(logits.sub_(top).exp_().sum(-1, keepdim=True).log_().add_(top))
    chosen: Tensor = torch.linalg.vecdot(hidden, head[targets]).float()
    return chosen - torch.logsumexp(torch.cat(parts, dim=-1), dim=-1)
