"""A batch: token sequences, and the predictions that are asked of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Token sequences and the predictions asked of them. All tensors lie on one device.

    tokens (B, L) and positions (B, L) of int64; mask (B, 1, L, L) of bool, true where attention
    may look, or None for plain causal attention; at (N,) indexes the flattened B*L positions
    whose next-token distribution is read; targets (N,) are the tokens expected there.
    """

    tokens: Tensor
    positions: Tensor
    mask: Tensor | None
    at: Tensor
    targets: Tensor

    @classmethod
    def unasked(cls, tokens: Tensor) -> Batch:
        """Whole sequences (B, L) of which no prediction is asked, where the tokens lie."""
        nothing = torch.zeros(0, dtype=torch.long, device=tokens.device)
        return cls(
            tokens,
            torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens),
            None,
            nothing,
            nothing,
        )

    def halves(self) -> list[Batch]:
        """Its sequences in two batches, predictions in the same order; itself where there is but one."""
        rows, length = self.tokens.shape
        if rows == 1:
            return [self]
        found, middle = [], rows // 2
        for start, stop in ((0, middle), (middle, rows)):
            here = (self.at >= start * length) & (self.at < stop * length)
            mask = None if self.mask is None else self.mask[start:stop]
            tokens, positions = self.tokens[start:stop], self.positions[start:stop]
            found.append(Batch(tokens, positions, mask, self.at[here] - start * length, self.targets[here]))
        return found

    def to(self, device: torch.device) -> Batch:
        mask = None if self.mask is None else self.mask.to(device)
        at, targets = self.at.to(device), self.targets.to(device)
        return Batch(self.tokens.to(device), self.positions.to(device), mask, at, targets)
