"""The dense network, and the elastic one: the same with the units of each site sorted by importance.

Any architecture is a *prefix view* of the elastic network: what a width keeps of a site is its first units.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from stages.evaluate.network.checkpoint import Checkpoint
from stages.evaluate.network.decoder import Decoder, Surroundings
from stages.evaluate.network.layers import Layer, OneAtATime, layer_of, permuted, units_of
from stages.evaluate.results.scores import UnitOrder


class DenseNetwork(Decoder):
    """The checkpoint's own network, on a device: its units stand in the checkpoint's order."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        shape, family = checkpoint.shape, checkpoint.family
        state = {name: tensor.to(device) for name, tensor in checkpoint.state.items()}
        layers = [layer_of(state, family, shape, i, width) for i, width in enumerate(shape.widths)]
        surroundings = Surroundings.of(shape, family, checkpoint.recipe, checkpoint.config, state)
        self.layers: list[Layer]
        super().__init__(surroundings, layers)

    def sorted(self, order: UnitOrder, keep: bool = True) -> ElasticNetwork:
        """Put the units of every site into `order`, which changes no output at full width.

        Unless `keep`, this network gives its layers up one by one, and is of no use afterwards: so a device
        never holds them twice.
        """
        layers: list[Layer] = []
        for index in range(self.shape.layers):
            layer = self.layers[index] if keep else self.layers.pop(0)
            layers.append(permuted(layer, self.shape, *units_of(order, self.shape, index, self.device)))
        return ElasticNetwork(self.surroundings, layers, order)


class ElasticNetwork(Decoder):
    """A network whose units stand in `order`, the most important first: any prefix view is worth running.

    `DenseNetwork.sorted` makes it.
    """

    def __init__(self, surroundings: Surroundings, layers: Sequence[Layer], order: UnitOrder) -> None:
        super().__init__(surroundings, layers)
        self.order = order

    def as_in_checkpoint(self) -> Decoder:
        """This network with the units in the checkpoint's order, each layer put back when it is asked for.

        What is computed on it equals the dense network's to the last digit.
        """
        back = self.order.inverse

        def put_back(index: int) -> Layer:
            return permuted(self.layers[index], self.shape, *units_of(back, self.shape, index, self.device))

        return Decoder(self.surroundings, OneAtATime(self.shape.layers, put_back))

    @classmethod
    def exact(cls, checkpoint: Checkpoint, order: UnitOrder, device: torch.device) -> ElasticNetwork:
        """A checkpoint in float32, each layer read from its files when it is asked for."""
        shape, family = checkpoint.shape, checkpoint.family
        layers = [family.layer.format(layer=index) for index in range(shape.layers)]

        def read(names: Iterable[str]) -> dict[str, Tensor]:
            return {name: t.to(device) for name, t in checkpoint.read(names, torch.float32).items()}

        def layer(index: int) -> Layer:
            state = read(name for name in checkpoint.stored if name.startswith(layers[index]))
            found = layer_of(state, family, shape, index, shape.widths[index])
            return permuted(found, shape, *units_of(order, shape, index, device))

        outside = read(name for name in checkpoint.stored if not name.startswith(tuple(layers)))
        surroundings = Surroundings.of(shape, family, checkpoint.recipe, checkpoint.config, outside)
        return cls(surroundings, OneAtATime(shape.layers, layer), order)
