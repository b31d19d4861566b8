"""The dense network, and the elastic one: the same with the units of each site sorted by importance.

Any architecture is a *prefix view* of the elastic network: what a width keeps of a site is its first units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch

from stages.evaluate.network.checkpoint import Checkpoint
from stages.evaluate.network.decoder import Decoder, Surroundings
from stages.evaluate.network.layers import Layer, layer_of, permuted
from stages.evaluate.results.scores import UnitOrder


class DenseNetwork(Decoder):
    """The checkpoint's own network, on a device: its units stand in the checkpoint's order."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        shape, family = checkpoint.shape, checkpoint.family
        state = {name: tensor.to(device) for name, tensor in checkpoint.state.items()}
        layers = [layer_of(state, family, shape, i, shape.dense_width) for i in range(shape.layers)]
        surroundings = Surroundings.of(shape, family, checkpoint.recipe, checkpoint.config, state)
        self.layers: list[Layer]
        super().__init__(surroundings, layers)

    def sorted(self, order: UnitOrder, keep: bool = True) -> ElasticNetwork:
        """Put the units of every site into `order`, which changes no output at full width.

        Unless `keep`, this network gives its layers up one by one, and is of no use afterwards: so a device
        never holds them twice.
        """
        shape, parts = self.shape, (order.groups, order.heads, order.channels)
        layers: list[Layer] = []
        for index in range(shape.layers):
            layer = self.layers[index] if keep else self.layers.pop(0)
            units = (torch.from_numpy(part[index]).to(self.device) for part in parts)
            layers.append(permuted(layer, shape, *units))
        return ElasticNetwork(self.surroundings, layers, order)


class ElasticNetwork(Decoder):
    """A network whose units stand in `order`, the most important first: any prefix view is worth running.

    `DenseNetwork.sorted` makes it.
    """

    def __init__(self, surroundings: Surroundings, layers: Sequence[Layer], order: UnitOrder) -> None:
        super().__init__(surroundings, layers)
        self.order = order

    def as_in_checkpoint(self) -> Decoder:
        """The same with the units in the checkpoint's order, each layer put back when it is asked for.

        What is computed on it equals the dense network's to the last digit, and it holds one layer.
        """
        return Decoder(self.surroundings, _PutBack(self))


class _PutBack(Sequence[Layer]):
    """The layers of an elastic network in the checkpoint's order, the last one asked for being held."""

    def __init__(self, network: ElasticNetwork) -> None:
        self._network = network
        self._held: tuple[int, Layer] | None = None

    def __len__(self) -> int:
        return len(self._network.layers)

    @overload
    def __getitem__(self, index: int) -> Layer: ...
    @overload
    def __getitem__(self, index: slice) -> list[Layer]: ...
    def __getitem__(self, index: int | slice) -> Layer | list[Layer]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if self._held is None or self._held[0] != index:
            self._held = None  # before the next is made
            network, back = self._network, self._network.order.inverse
            parts = (back.groups, back.heads, back.channels)
            units = (torch.from_numpy(part[index]).to(network.device) for part in parts)
            self._held = index, permuted(network.layers[index], network.shape, *units)
        return self._held[1]
