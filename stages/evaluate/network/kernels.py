"""The element-wise parts of a decoder as Triton kernels: one pass over memory each.

Imported on a GPU alone, where PyTorch brings Triton along. Launched directly, for a pruned layer's
kernels end sooner than a function of torch.compile is called. All compute in float32 and round the
result; the norm also where transformers does.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096
"""Elements that a program holds at once."""


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float, in_float32: bool) -> Tensor:
    """RMS norm of x (..., D), scaled by weight (D,) and `offset`.

    It is rounded to x's dtype before it is scaled, unless that is done `in_float32`.
    """
    x = x.contiguous()
    size = x.shape[-1]
    rows, columns = x.numel() // size, triton.next_power_of_2(size)
    at_once = max(1, TILE // columns)
    normed = torch.empty_like(x)
    grid = (triton.cdiv(rows, at_once),)
    _rms_norm[grid](x, weight, normed, rows, eps, offset, size, columns, at_once, in_float32)
    return normed


@triton.jit
def _rms_norm(
    x,
    weight,
    normed,
    rows,
    eps,
    offset,
    size: tl.constexpr,
    columns: tl.constexpr,
    at_once: tl.constexpr,
    in_float32: tl.constexpr,
):
    row = (tl.program_id(0) * at_once + tl.arange(0, at_once)).to(tl.int64)[:, None]
    column = tl.arange(0, columns)[None, :]
    inside = (row < rows) & (column < size)
    wide = tl.load(x + row * size + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 1) / size + eps)[:, None]
    rounded = wide * scale
    if not in_float32:
        rounded = rounded.to(normed.dtype.element_ty).to(tl.float32)
    scaled = rounded * (tl.load(weight + column, mask=column < size, other=0.0).to(tl.float32) + offset)
    tl.store(normed + row * size + column, scaled.to(normed.dtype.element_ty), mask=inside)


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary embeddings of q (B, L, G, H, d) and k (B, L, G, d), as q (B, L, G*H, d) and k, both compact.

    Angles are (B, L, 1, r), of the first r elements; `sin` is negative in its first half.
    """
    batch, length, groups, heads, size = q.shape
    q, k, half = q.flatten(0, 1), k.flatten(0, 1), cos.shape[-1] // 2
    rows, columns = (triton.next_power_of_2(n) for n in (heads, max(half, size - 2 * half)))
    at_once = max(1, TILE // (2 * rows * columns))
    turned = q.new_empty(batch, length, groups * heads, size), k.new_empty(batch, length, groups, size)
    tokens, strides = batch * length, (q.stride(0), q.stride(1), k.stride(0))
    grid = (triton.cdiv(tokens, at_once), groups)
    _rotate[grid](q, k, cos, sin, *turned, tokens, *strides, heads, size, half, rows, columns, at_once)
    return turned


@triton.jit
def _rotate(
    q,
    k,
    cos,
    sin,
    turned_q,
    turned_k,
    tokens,
    q_token,
    q_group,
    k_token,
    heads: tl.constexpr,
    size: tl.constexpr,
    half: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    at_once: tl.constexpr,
):
    """A KV group's query heads and its key, for a few tokens."""
    group, groups = tl.program_id(1), tl.num_programs(1)
    token = (tl.program_id(0) * at_once + tl.arange(0, at_once)).to(tl.int64)[:, None, None]
    head, column = tl.arange(0, rows)[None, :, None], tl.arange(0, columns)[None, None, :]
    here = (token < tokens) & (column < half)
    angle = token * 2 * half + column
    c = tl.load(cos + angle, mask=here).to(tl.float32)
    s = tl.load(sin + angle + half, mask=here).to(tl.float32)
    query = token * q_token + group * q_group + head * size + column
    target = ((token * groups + group) * heads + head) * size + column
    _turn(q + query, turned_q + target, half, c, s, here & (head < heads))
    key = token * k_token + group * size + column
    turned = (token * groups + group) * size + column
    _turn(k + key, turned_k + turned, half, c, s, here)
    if size > 2 * half:
        rest = (token < tokens) & (column < size - 2 * half)
        _copy(q + query + 2 * half, turned_q + target + 2 * half, rest & (head < heads))
        _copy(k + key + 2 * half, turned_k + turned + 2 * half, rest)


@triton.jit
def _copy(source, target, mask):
    tl.store(target, tl.load(source, mask=mask), mask=mask)


@triton.jit
def _turn(source, target, half: tl.constexpr, c, s, mask):
    first = tl.load(source, mask=mask).to(tl.float32)
    second = tl.load(source + half, mask=mask).to(tl.float32)
    tl.store(target, (first * c - second * s).to(target.dtype.element_ty), mask=mask)
    tl.store(target + half, (second * c + first * s).to(target.dtype.element_ty), mask=mask)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up of two tensors of one shape."""
    gated, count = torch.empty_like(gate), gate.numel()
    _swiglu[(triton.cdiv(count, TILE),)](gate, up, gated, count, TILE, num_warps=8)
    return gated


@triton.jit
def _swiglu(gate, up, gated, count, at_once: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * at_once + tl.arange(0, at_once)
    inside = place < count
    opened = tl.load(gate + place, mask=inside).to(tl.float32)
    product = opened * tl.sigmoid(opened) * tl.load(up + place, mask=inside).to(tl.float32)
    tl.store(gated + place, product.to(gated.dtype.element_ty), mask=inside)


def log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """Natural-log likelihood (N,) of targets (N,) in float32, from logits (N, vocabulary).

    The logits are read once: sums of exponentials are kept relative to the largest logit so far
    (Milakov and Gimelshein 2018, arXiv 1805.02867).
    """
    found = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    _log_likelihood[(len(logits),)](logits, targets, found, logits.shape[1], TILE // 2, num_warps=8)
    return found


@triton.jit
def _log_likelihood(logits, targets, found, vocabulary, at_once: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * vocabulary
    largest = tl.full((at_once,), -3e38, tl.float32)  # of each lane: lanes meet once, at the end
    total = tl.zeros((at_once,), tl.float32)
    for start in range(0, vocabulary, at_once):
        column = start + tl.arange(0, at_once)
        logit = tl.load(logits + column, mask=column < vocabulary, other=-float("inf")).to(tl.float32)
        larger = tl.maximum(largest, logit)
        total = total * tl.exp(largest - larger) + tl.exp(logit - larger)
        largest = larger
    top = tl.max(largest, 0)
    normaliser = top + tl.log(tl.sum(total * tl.exp(largest - top), 0))
    chosen = tl.load(logits + tl.load(targets + row)).to(tl.float32)
    tl.store(found + row, chosen - normaliser)
