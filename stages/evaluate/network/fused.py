"""The element-wise parts of a decoder, each with as few passes over memory as the device allows.

Between the matrix products a decoder is bound by memory traffic: written as separate operations
each of these reads and writes its tensors several times. On a GPU each is one kernel (`kernels`). On
a CPU most of the time goes into fresh memory, so that what is a temporary anyway is written over.
Where gradients are wanted, they run as written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

if torch.cuda.is_available() and find_spec("triton"):  # `workbench` sees to it that a GPU has it
    from stages.evaluate.network import kernels

VOCABULARY_AT_ONCE = 1024
"""Tokens of the vocabulary whose logits a CPU holds at once: with 1,024 predictions 4 MB, which stay
in its cache. Fixed, because the grouping decides the last digits of a result."""


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0, in_float32: bool = False) -> Tensor:
    """RMS norm of x (..., D) in float32, times weight (D,) and `offset`, as transformers computes it.

    It is scaled in x's dtype, or in float32.
    """
    if x.is_cuda and not torch.is_grad_enabled():
        return kernels.rms_norm(x, weight, eps, offset, in_float32)
    wide = x.float()
    if torch.is_grad_enabled():
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    else:
        normed = F.rms_norm(wide, x.shape[-1:], eps=eps)
    if in_float32:
        return (normed * (weight.float() + offset)).to(x.dtype)
    scale = weight + offset if offset else weight
    if torch.is_grad_enabled():
        return scale * normed.to(x.dtype)
    return normed.to(x.dtype).mul_(scale)


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary embeddings of q (B, L, G, H, d) and k (B, L, G, d) by angles (B, L, 1, r).

    Returns q (B, L, G*H, d) and k. The first r elements turn, half of them against the other half, and
    `sin` carries the sign: it is negative in the first half (Su et al. 2021, arXiv 2104.09864).
    """
    if q.is_cuda and not torch.is_grad_enabled():
        return kernels.rotate(q, k, cos, sin)
    return _rotate(q.flatten(2, 3), cos, sin), _rotate(k, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    if cos.shape[-1] < x.shape[-1]:
        turned, rest = x.tensor_split([cos.shape[-1]], dim=-1)
        return torch.cat((_rotate(turned, cos, sin), rest), dim=-1)
    first, second = x.chunk(2, dim=-1)
    swapped = torch.cat((second, first), dim=-1)
    if torch.is_grad_enabled() or cos.dtype != x.dtype:
        return (x * cos + swapped * sin).to(x.dtype)
    return swapped.mul_(sin).addcmul_(x, cos)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up (Shazeer 2020, arXiv 2002.05202). On a CPU `gate` is written over."""
    if torch.is_grad_enabled():
        return F.silu(gate) * up
    if gate.is_cuda:
        return kernels.swiglu(gate, up)
    return F.silu(gate, inplace=True).mul_(up)


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """gelu(gate) · up with the tangent's approximation of GELU (Shazeer 2020, arXiv 2002.05202)."""
    return F.gelu(gate, approximate="tanh") * up


GATES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"silu": swiglu, "gelu_pytorch_tanh": geglu}
"""activation(gate) · up by a recipe's name of the activation."""


def log_likelihood(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Natural-log likelihood (N,) of targets (N,) in float32, from normed states (N, D).

    `head` (vocabulary, D) makes their logits.
    """
    if torch.is_grad_enabled():
        wide = F.linear(hidden, head).float()
        chosen = wide.gather(-1, targets[:, None])[:, 0]
        return chosen - torch.logsumexp(wide, dim=-1)
    if hidden.is_cuda:
        return kernels.log_likelihood(F.linear(hidden, head), targets)
    return _from_blocks(hidden, head, targets)


def _from_blocks(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    parts = []  # the logarithm of a sum of exponentials is that of its parts' own
    for block in head.split(VOCABULARY_AT_ONCE):
        logits = F.linear(hidden, block).float()
        top = logits.amax(-1, keepdim=True)
        parts.append(logits.sub_(top).exp_().sum(-1, keepdim=True).log_().add_(top))
    chosen: Tensor = torch.linalg.vecdot(hidden, head[targets]).float()
    return chosen - torch.logsumexp(torch.cat(parts, dim=-1), dim=-1)
