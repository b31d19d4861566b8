"""Attention: every path against the formula in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stages.evaluate.network import attention
from stages.evaluate.network.attention import QUERIES_AT_ONCE

GENERATOR = torch.Generator().manual_seed(5)
LENGTHS = [1, QUERIES_AT_ONCE - 1, QUERIES_AT_ONCE, QUERIES_AT_ONCE + 1, 3 * QUERIES_AT_ONCE]


def given(groups: int, heads: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of two rows as the network makes them: a token's heads side by side."""
    return tuple(  # type: ignore[return-value]
        torch.randn(2, length, count, 8, generator=GENERATOR).transpose(1, 2)
        for count in (groups * heads, groups, groups)
    )


def by_formula(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    each = q.shape[1] // k.shape[1]
    q, k, v = q.double(), *(t.double().repeat_interleave(each, dim=1) for t in (k, v))
    scores = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf)
    mixed: Tensor = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    return mixed.float()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("groups", "heads"), [(1, 1), (3, 1), (1, 4), (2, 3)])
@pytest.mark.parametrize("gradients", [False, True])
def test_causal_attention(groups: int, heads: int, length: int, gradients: bool) -> None:
    q, k, v = given(groups, heads, length)
    with torch.set_grad_enabled(gradients):
        found = attention.attention(q, k, v, None)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    torch.testing.assert_close(found, by_formula(q, k, v, causal), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", LENGTHS)
def test_attention_where_a_mask_lets_it_look(length: int) -> None:
    q, k, v = given(2, 3, length)
    mask = (torch.rand(2, 1, length, length, generator=GENERATOR) < 0.5) | torch.eye(length, dtype=torch.bool)
    with torch.inference_mode():
        found = attention.attention(q, k, v, mask)
    torch.testing.assert_close(found, by_formula(q, k, v, mask), rtol=1e-5, atol=1e-5)


def test_a_text_is_attended_alike_alone_and_as_the_start_of_a_longer_one() -> None:
    q, k, v = given(2, 3, 100)
    with torch.inference_mode():
        short = attention.attention(q[:, :, :70], k[:, :, :70], v[:, :, :70], None)
        assert attention.attention(q, k, v, None)[:, :70].allclose(short, rtol=1e-5, atol=1e-6)
