"""Rotary embeddings of each layer (Su et al. 2021, arXiv 2104.09864), by transformers' own frequencies."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from stages.families.recipe import Rotary

Turn = tuple[Tensor, Tensor]
"""Cosines and sines (B, L, 1, r) of the angles by which the first r elements of one layer's heads turn.

The sines of the first half are negative, as `fused.rotate` wants them.
"""
Turns = Sequence[Turn | None]
"""How the heads of each layer turn; None where they do not."""


@dataclass(frozen=True)
class Rotation:
    """One rotary embedding: frequencies (r/2,), and what cosines and sines are multiplied by."""

    frequencies: Tensor
    scaling: float
    longer: Tensor | None = None
    """The frequencies of texts of more than `trained` tokens, where they are others."""
    trained: int = 0

    @classmethod
    def of(cls, rotary: Rotary, config: Any, device: torch.device) -> Rotation:
        """The rotation that a recipe names; `config`, the model's in transformers, has the sizes."""
        own = copy.copy(config)
        own.rope_parameters = dict(rotary)
        own.allow_global_per_layer_attribute_access = True  # the dense heads of a model pruned before
        rope, longer, trained = Phi3RotaryEmbedding(own), None, 0
        if rotary.get("rope_type") == "longrope":
            trained = int(rotary["original_max_position_embeddings"])
            found, _ = ROPE_INIT_FUNCTIONS["longrope"](own, None, seq_len=trained + 1)
            longer = found.float().to(device)
        return cls(rope.inv_freq.float().to(device), float(rope.attention_scaling), longer, trained)

    def turn(self, positions: Tensor, dtype: torch.dtype) -> Turn:
        """The turn at positions (B, L). Each text is as long as its last position says."""
        frequencies = self.frequencies
        if self.longer is not None:
            beyond = positions.amax(1) >= self.trained
            frequencies = torch.where(beyond[:, None], self.longer, frequencies)[:, None]  # (B, 1, r/2)
        angles = (positions[..., None].float() * frequencies)[:, :, None]
        cos, sin = angles.cos() * self.scaling, angles.sin() * self.scaling
        return torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype)


@dataclass(frozen=True)
class Rotations:
    """The rotary embeddings of a network's layers. Layers that turn alike share one.

    `which` has the place of each layer's in `kinds`.
    """

    which: tuple[int | None, ...]
    kinds: tuple[Rotation, ...]

    @classmethod
    def of(cls, by_layer: Sequence[Rotary | None], config: Any, device: torch.device) -> Rotations:
        """The rotations of a recipe's layers; `config`, the model's in transformers, has the sizes."""
        kinds: list[Rotary] = []
        for rotary in by_layer:
            if rotary is not None and rotary not in kinds:
                kinds.append(rotary)
        return cls(
            tuple(None if rotary is None else kinds.index(rotary) for rotary in by_layer),
            tuple(Rotation.of(rotary, config, device) for rotary in kinds),
        )

    def at(self, positions: Tensor, dtype: torch.dtype) -> Turns:
        """The turns of every layer at positions (B, L)."""
        turns = [rotation.turn(positions, dtype) for rotation in self.kinds]
        return [None if which is None else turns[which] for which in self.which]
