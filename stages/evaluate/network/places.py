"""What the places of a batch's tokens are to each layer: how its heads turn, and where they may look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.evaluate.network.batch import Batch
from stages.evaluate.network.rotary import Rotations, Turn


@dataclass(frozen=True)
class Places:
    """Each layer's turn, None where its heads do not turn, and its mask.

    A mask (B, 1, L, L) is true where attention may look; None stands for plain causal attention.
    """

    turns: Sequence[Turn | None]
    masks: Sequence[Tensor | None]

    @classmethod
    def of(
        cls, batch: Batch, rotations: Rotations, windows: Sequence[int | None], dtype: torch.dtype
    ) -> Places:
        """The places of a batch's tokens, for layers with these windows."""
        length = batch.tokens.shape[1]
        masks = {
            window: batch.mask if window is None or window >= length else _within(batch, window)
            for window in set(windows)
        }
        return cls(rotations.at(batch.positions, dtype), [masks[window] for window in windows])


def _within(batch: Batch, window: int) -> Tensor:
    """A batch's mask, where keys beyond the window are not seen: a token's window ends with itself."""
    behind = batch.positions[:, None, :, None] - batch.positions[:, None, None, :]
    near = (behind >= 0) & (behind < window)
    return near if batch.mask is None else near & batch.mask
