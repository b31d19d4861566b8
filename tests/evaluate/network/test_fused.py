"""The element-wise parts: what runs without gradients is what is written, and so is the blocked loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.evaluate.network import fused

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GENERATOR = torch.Generator().manual_seed(3)


@pytest.fixture
def kernels() -> Any:
    """The GPU's kernels: on a GPU where there is one, else in Triton's interpreter."""
    pytest.importorskip("triton", reason="Triton is for Linux")
    from stages.evaluate.network import kernels

    return kernels


def normal(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*size, generator=GENERATOR).to(dtype)


def arguments(name: str, dtype: torch.dtype, width: int) -> tuple[Any, ...]:
    """Those of a function: hidden states of a width; heads of parts of groups, side by side in a product."""
    GENERATOR.manual_seed(width)  # the same numbers whichever tests run before
    x = normal(2, 5, width, dtype=dtype)
    if name == "rms_norm":
        return x, normal(width, dtype=dtype), 1e-5, 0.0, False
    if name == "rms_norm-offset":
        return x, normal(width, dtype=dtype), 1e-5, 1.0, False
    if name == "rms_norm-wide":
        return x, normal(width, dtype=dtype), 1e-5, 1.0, True
    if name == "swiglu":
        return x, normal(2, 5, width, dtype=dtype)
    if name == "log_likelihood":
        return normal(9, width, dtype=dtype) * 40, torch.randint(0, width, (9,), generator=GENERATOR)
    heads, half = {8: (1, 4), 24: (3, 12), 576: (2, 16), 5000: (5, 32)}[width]
    rest = {"rotate-part": half // 2, "rotate-little": 3 * half}.get(name, 0)
    q = normal(2, 5, 2, heads + 1, 2 * half + rest, dtype=dtype)[..., :heads, :]
    angles = normal(2, 5, 1, half)
    cos, sin = torch.cat((angles.cos(),) * 2, -1), torch.cat((-angles.sin(), angles.sin()), -1)
    return q, normal(2, 5, 2, 2 * half + rest, dtype=dtype), cos.to(dtype), sin.to(dtype)


FUNCTIONS = [
    "rms_norm",
    "rms_norm-offset",
    "rms_norm-wide",
    "rotate",
    "rotate-part",
    "rotate-little",
    "swiglu",
]
DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [8, 24, 576, 5000])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_without_gradients_the_same_is_computed(name: str, width: int, dtype: torch.dtype) -> None:
    given = arguments(name, dtype, width)
    function: Callable[..., Tensor] = getattr(fused, name.partition("-")[0])
    written = function(*given)  # gradients are enabled here
    with torch.inference_mode():
        before = given[0].clone()
        found = function(*given)
    tolerance = 1e-6 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(found, written, rtol=tolerance, atol=tolerance)
    assert name == "swiglu" or given[0].equal(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [8, 24, 576, 5000])
@pytest.mark.parametrize("name", [*FUNCTIONS, "log_likelihood"])
def test_the_kernels_compute_the_same(kernels: Any, name: str, width: int, dtype: torch.dtype) -> None:
    given = tuple(x.to(DEVICE) if isinstance(x, Tensor) else x for x in arguments(name, dtype, width))
    if name == "log_likelihood":  # its product with the head is not the kernel's
        logits, targets = given
        written = torch.log_softmax(logits.float(), -1)[torch.arange(9), targets]
    else:
        written = getattr(fused, name.partition("-")[0])(*given)
    found = getattr(kernels, name.partition("-")[0])(*given)
    tolerance = 2e-6 if dtype is torch.float32 or name == "log_likelihood" else 2e-2
    absolute = 2e-5 if name == "log_likelihood" else tolerance  # a difference of logits around 100
    torch.testing.assert_close(found, written, rtol=tolerance, atol=absolute)
    if name.startswith("rotate"):
        assert all(part.is_contiguous() for part in found)


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
