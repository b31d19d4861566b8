"""The dense network, and the elastic one: the same with the units of each site sorted by importance.

Any architecture is a *prefix view* of the elastic network: what a width keeps of a site is its first units.
"""

from __future__ import annotations

from collections.abc import Sequence

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
