"""Pruned weights: an architecture with tensors of its own, how they were made, and how they run.

A prefix view shares its tensors with every other architecture of the elastic network. Weights that a later
step makes (the second repair, a recovery) are one architecture's own: they pass from step to step as
`PrunedWeights`, and two weightings of one architecture are told apart by their digests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stages.architecture import Architecture
from stages.evaluate.network.batch import Batch
from stages.evaluate.network.decoder import Decoder
from stages.evaluate.network.device import fits
from stages.evaluate.network.layers import Layer, OneAtATime, layer_of
from stages.files import digest

State = Mapping[str, Tensor]
"""Tensors under the family's Hugging Face names: original layer numbers, nothing of a dropped sublayer, and
no head where it is tied to the embedding."""


@dataclass(frozen=True)
class PrunedWeights:
    """An architecture with tensors of its own.

    `made` has the steps that made them, the first being what they were cut from, each with everything that
    decides its outcome; so the digest is known before a tensor is computed. `make` computes them in a
    dtype, on the CPU.
    """

    architecture: Architecture
    made: tuple[Mapping[str, Any], ...]
    make: Callable[[torch.dtype], State]

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of the architecture and of how its tensors were made."""
        return digest(self.architecture.id, *self.made)

    @property
    def is_view(self) -> bool:
        """Whether they were cut from the elastic network and nothing more: its prefix view is the same."""
        return len(self.made) == 1

    def then(self, step: Mapping[str, Any], make: Callable[[torch.dtype], State]) -> PrunedWeights:
        """The weights that a further step makes of these."""
        return replace(self, made=(*self.made, step), make=make)


def ready(weights: PrunedWeights, like: Decoder) -> PrunedNetwork:
    """The weights as a network beside `like`, its layers one at a time where a GPU does not hold them all."""
    state = weights.make(like.dtype)
    size = sum(tensor.numel() * like.dtype.itemsize for tensor in state.values())
    return PrunedNetwork(weights.architecture, state, like, one_at_a_time=not fits(like.device, size))


class PrunedNetwork(Decoder):
    """Tensors of an architecture's own, ready to run at its widths, with the surroundings of `like`.

    They lie on the device of `like` in its dtype, embedding, final norm and head included; the layers
    `one_at_a_time` where they are run once.
    """

    def __init__(
        self, architecture: Architecture, state: State, like: Decoder, one_at_a_time: bool = False
    ) -> None:
        shape, family = like.shape, like.family

        def ours(name: str) -> Tensor:
            return state[name].to(like.device, like.dtype)

        def layer(index: int) -> Layer:
            prefix = family.layer.format(layer=index)
            own = {name: ours(name) for name in state if name.startswith(prefix)}
            return layer_of(own, family, shape, index, architecture.widths[index])

        embedding = ours(family.embedding)
        head = embedding if shape.tied_embeddings else ours(family.head)
        surroundings = replace(
            like.surroundings, embedding=embedding, final_norm=ours(family.final_norm), head=head
        )
        layers: Sequence[Layer] = OneAtATime(shape.layers, layer)
        super().__init__(surroundings, layers if one_at_a_time else list(layers))
        self.architecture = architecture

    def logits_of(self, tokens: Tensor) -> Tensor:
        """Next-token logits (B, L, V) in float32 after every token of sequences (B, L), on the CPU."""
        batch = Batch.unasked(tokens.to(self.device))
        with torch.inference_mode():
            hidden, _ = self.hidden_states(self.architecture, batch)
            return self.logits(hidden).float().cpu()
