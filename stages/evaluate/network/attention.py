"""Scaled dot-product attention (Vaswani et al. 2017, arXiv 1706.03762), by PyTorch's own kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

QUERIES_AT_ONCE = 64
"""Queries of a block on a CPU. Fixed, because the grouping decides the last digits of a result."""


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None = None) -> Tensor:
    """Values (B, L, heads * d) mixed for queries q (B, heads, L, d) by keys and values k, v (B, G, L, d).

    `mask` (B, 1, L, L) is true where a query may look; None stands for causal attention. A KV group
    serves heads / G query heads that follow each other (Ainslie et al. 2023, arXiv 2305.13245). Scores are
    multiplied by `scale`, by default 1 / sqrt(d).
    """
    if mask is None and not q.is_cuda and not torch.is_grad_enabled():
        return _causal_in_blocks(q, k, v, scale).flatten(2)
    mixed = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=q.shape[1] > k.shape[1]
    )
    return mixed.transpose(1, 2).flatten(2)


def _causal_in_blocks(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    """A block of queries meets the keys up to its last: (B, L, heads, d).

    The CPU's kernel asked for causal attention at once meets keys 512 at a time, needed or not.
    """
    rows, heads, length, d = q.shape
    mixed = q.new_empty(rows, length, heads, d)
    for start in range(0, length, QUERIES_AT_ONCE):
        stop = min(start + QUERIES_AT_ONCE, length)
        later = q.new_full((stop - start, stop), -torch.inf).triu_(start + 1)
        mixed[:, start:stop] = F.scaled_dot_product_attention(
            q[:, :, start:stop],
            k[:, :, :stop],
            v[:, :, :stop],
            attn_mask=later,
            scale=scale,
            enable_gqa=heads > k.shape[1],
        ).transpose(1, 2)
    return mixed
