"""The element-wise parts of a decoder, each as one kernel on a GPU.

Between the matrix products a decoder is bound by memory traffic: written as separate operations
each of these reads and writes its tensors several times. On a GPU they are compiled (once, for all
widths); on a CPU, and where gradients are wanted, they run as written.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import torch
import torch.nn.functional as F
from torch import Tensor

P = ParamSpec("P")


def _on_gpu_fused(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    compiled = torch.compile(function, dynamic=True)

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        first = args[0]
        assert isinstance(first, Tensor)
        fused = first.is_cuda and not torch.is_grad_enabled()
        return compiled(*args, **kwargs) if fused else function(*args, **kwargs)

    return run


@_on_gpu_fused
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm of x (..., D) in float32, scaled in x's dtype, as transformers computes it."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)


@_on_gpu_fused
def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embeddings of x (B, L, heads, d) by angles (B, L, 1, d), halves against each other."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


@_on_gpu_fused
def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up (Shazeer 2020, arXiv 2002.05202)."""
    return F.silu(gate) * up


@_on_gpu_fused
def log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """Natural-log likelihood (N,) of targets (N,) under logits (N, vocabulary), in float32."""
    wide = logits.float()
    chosen = wide.gather(-1, targets[:, None])[:, 0]
    return chosen - torch.logsumexp(wide, dim=-1)
