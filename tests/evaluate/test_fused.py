"""The element-wise parts: what runs without gradients is what is written, and so is the blocked loss."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stages.evaluate import fused

GENERATOR = torch.Generator().manual_seed(3)


def normal(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*size, generator=GENERATOR).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["rms_norm", "rotate", "swiglu"])
def test_without_gradients_the_same_is_computed(name: str, dtype: torch.dtype) -> None:
    x, other = normal(2, 5, 3, 8, dtype=dtype), normal(2, 5, 3, 8, dtype=dtype)
    angles = normal(2, 5, 1, 8)
    arguments = {
        "rms_norm": (x, normal(8, dtype=dtype), 1e-5),
        "rotate": (x, angles.cos().to(dtype), angles.sin().to(dtype)),
        "swiglu": (x, other),
    }[name]
    function: Callable[..., Tensor] = getattr(fused, name)
    written = function(*arguments)  # gradients are enabled here
    with torch.inference_mode():
        before = x.clone()
        found = function(*arguments)
    tolerance = 1e-6 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(found, written, rtol=tolerance, atol=tolerance)
    assert name == "swiglu" or x.equal(before)


@pytest.mark.parametrize("vocabulary", [1, 1024, 2500])
@pytest.mark.parametrize("scale", [0.1, 40.0])  # logits in the thousands: exponentials would overflow
def test_the_loss_in_blocks_is_that_over_the_whole_vocabulary(vocabulary: int, scale: float) -> None:
    hidden, head = normal(7, 32), scale * normal(vocabulary, 32)
    targets = torch.randint(0, vocabulary, (7,), generator=GENERATOR)
    exact = torch.log_softmax(hidden.double() @ head.double().T, -1)[torch.arange(7), targets]
    with torch.inference_mode():
        found = fused.log_likelihood(hidden, head, targets)
    torch.testing.assert_close(found.double(), exact, rtol=2e-6, atol=2e-6 * scale * 32)
    torch.testing.assert_close(fused.log_likelihood(hidden, head, targets), found, rtol=1e-5, atol=1e-4)
