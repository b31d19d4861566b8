"""Rotary embeddings of each layer (Su et al. 2021, arXiv 2104.09864), by transformers' own frequencies."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from stages.families.recipe import Rotary

Turn = tuple[Tensor, Tensor]
"""Cosines and sines (B, L, 1, d) of the angles by which one layer's heads turn at each position.

The sines of the first half are negative, as `fused.rotate` wants them.
"""
Turns = Sequence[Turn | None]
"""How the heads of each layer turn; None where they do not."""


@dataclass(frozen=True)
class Rotations:
    """The rotary embeddings of a network's layers. Layers that turn alike share one.

    `which` has the place of each layer's in `frequencies`, (d/2,) each, and in `scalings`, by which cosines
    and sines are multiplied.
    """

    which: tuple[int | None, ...]
    frequencies: tuple[Tensor, ...]
    scalings: tuple[float, ...]

    @classmethod
    def of(cls, by_layer: Sequence[Rotary | None], config: Any, device: torch.device) -> Rotations:
        """The rotations of a recipe's layers; `config`, the model's in transformers, has the sizes."""
        kinds: list[Rotary] = []
        for rotary in by_layer:
            if rotary is not None and rotary not in kinds:
                kinds.append(rotary)
        found = []
        for rotary in kinds:
            own = copy.copy(config)
            own.rope_parameters = dict(rotary)
            own.allow_global_per_layer_attribute_access = True  # the dense heads of a model pruned before
            found.append(LlamaRotaryEmbedding(own))
        return cls(
            tuple(None if rotary is None else kinds.index(rotary) for rotary in by_layer),
            tuple(rope.inv_freq.float().to(device) for rope in found),
            tuple(float(rope.attention_scaling) for rope in found),
        )

    def at(self, positions: Tensor, dtype: torch.dtype) -> Turns:
        """The turns of every layer at positions (B, L)."""
        pairs = zip(self.frequencies, self.scalings, strict=True)
        kinds = [_turn(positions, frequencies, scaling, dtype) for frequencies, scaling in pairs]
        return [None if which is None else kinds[which] for which in self.which]


def _turn(positions: Tensor, frequencies: Tensor, scaling: float, dtype: torch.dtype) -> Turn:
    angles = (positions[..., None].float() * frequencies)[:, :, None]
    cos, sin = angles.cos() * scaling, angles.sin() * scaling
    return torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype)
