"""The losses in blocks are PyTorch's own, gradients included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stages.recovery import loss


@pytest.mark.parametrize("block", [3, 64])
@pytest.mark.parametrize("kind", ["divergence", "cross entropy"])
def test_values_and_gradients_are_those_of_all_logits_at_once(
    kind: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loss.BLOCK, "cpu", block)
    generator = torch.Generator().manual_seed(0)
    hidden, teacher = (torch.randn(10, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    head, own = (torch.randn(30, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    targets = torch.randint(30, (10,), generator=generator)
    found = []
    for in_blocks in (True, False):
        h, w = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        log_q = (0.7 * h @ w.T).log_softmax(-1)
        if kind == "divergence":
            p = (teacher @ own.T).softmax(-1)
            whole = F.kl_div(log_q, p, reduction="batchmean")
            value = loss.divergence(h, w, teacher, own, 0.7) if in_blocks else whole
        else:
            value = loss.cross_entropy(h, w, targets, 0.7) if in_blocks else F.nll_loss(log_q, targets)
        (3 * value).backward()
        found.append((value.detach().double(), h.grad, w.grad))
    for ours, theirs in zip(*found, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)


def test_a_head_that_is_not_trained_takes_no_gradient() -> None:
    hidden, head = torch.randn(4, 8, requires_grad=True), torch.randn(30, 8)
    loss.divergence(hidden, head, torch.randn(4, 8), head, 1.0).backward()
    assert hidden.grad is not None
    assert head.grad is None
