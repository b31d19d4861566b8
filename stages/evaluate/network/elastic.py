"""The dense network, and the elastic one: the same with the units of each site sorted by importance.

Any architecture is a *prefix view* of the elastic network: what a width keeps of a site is its first units.
"""

from __future__ import annotations

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

    def sorted(self, order: UnitOrder) -> ElasticNetwork:
        """This network with the units of every site in `order`; outputs at full width do not change."""
        return ElasticNetwork(self.surroundings, self.layers, order)


class ElasticNetwork(Decoder):
    """A network whose units stand in `order`, the most important first: any prefix view is worth running."""

    def __init__(self, surroundings: Surroundings, layers: list[Layer], order: UnitOrder) -> None:
        shape, device = surroundings.shape, surroundings.device
        parts = (order.groups, order.heads, order.channels)
        super().__init__(
            surroundings,
            [
                permuted(layer, shape, *(torch.from_numpy(part[index]).to(device) for part in parts))
                for index, layer in enumerate(layers)
            ],
        )
        self.order = order
