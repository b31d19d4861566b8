"""How much each unit matters: the scores by which the units of a site are sorted.

Methods that need no gradient; those that do are in `taylor`. x are a site's activations on
calibration text (the inputs of its output projection), W the output projection:

| method | a unit's score | source |
| --- | --- | --- |
| ``magnitude`` | L2 norm of all its weights | Li et al. 2017, arXiv 1608.08710 |
| ``activation`` | L2 norm of its activations over tokens | Minitron, Muralidharan 2024, arXiv 2407.14679 |
| ``wanda`` | L2 norm of ‖x_i‖ ‖W_i‖ over its elements i | Sun et al. 2024, arXiv 2306.11695, by structure |
| ``fluctuation`` | Σ Var(x_i) ‖W_i‖² over its elements i | FLAP, An et al. 2023, arXiv 2312.11983, eq. 5 |
| ``random`` | drawn, seeded: a control | |
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from stages.architecture import Kind, ModelShape, Site
from stages.evaluate.calibrate.statistics import Statistics
from stages.evaluate.network.elastic import ElasticNetwork
from stages.evaluate.network.layers import Layer, UnitOrder
from stages.files import InputError


@dataclass(frozen=True)
class UnitScores:
    """Scores in the checkpoint's own order of units; larger matters more; float32 on the CPU.

    heads (layers, G, H): query heads, with their rows of q and columns of o;
    groups (layers, G): what a KV group adds of its own, the rows of k and v;
    channels (layers, C): rows of gate and up, columns of down.
    """

    heads: Tensor
    groups: Tensor
    channels: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> UnitScores:
        """The function of every score, in float32."""
        heads, groups, channels = (function(t).float() for t in (self.heads, self.groups, self.channels))
        return UnitScores(heads, groups, channels)

    def order(self) -> UnitOrder:
        """Units by falling score; ties keep the checkpoint's order, so the order is reproducible."""
        total = self.groups + self.heads.sum(-1)
        groups = total.argsort(dim=-1, descending=True, stable=True)
        heads = self.heads.argsort(dim=-1, descending=True, stable=True)
        return UnitOrder(
            groups=groups,
            heads=torch.gather(heads, 1, groups[..., None].expand_as(heads)),
            channels=self.channels.argsort(dim=-1, descending=True, stable=True),
        )

    @property
    def digest(self) -> str:
        """Digest of the order that the scores give: what decides every pruned model's value."""
        order = self.order()
        digest = hashlib.sha256()
        for tensor in (order.groups, order.heads, order.channels):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()[:16]

    def save(self, path: Path, key: str) -> None:
        """Write the scores under `key`, a digest of what they were computed from; whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")
        tensors = {"heads": self.heads, "groups": self.groups, "channels": self.channels}
        temporary.write_bytes(save(tensors, {"key": key}))  # save_file would hide it from other users
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path, key: str) -> UnitScores | None:
        """Read what `save` wrote, or None if there is no file or it was computed from something else.

        Raises:
            InputError: the file is damaged.
        """
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("key") != key:
                    return None
                return cls(**{name: file.get_tensor(name) for name in ("heads", "groups", "channels")})
        except SafetensorError as error:
            raise InputError(
                f"{path} is damaged ({error}); delete it and run `dvc repro evaluate`"
            ) from error


def from_statistics(method: str, network: ElasticNetwork, statistics: Statistics) -> UnitScores:
    """Scores of ``activation``, ``wanda`` and ``fluctuation``. The network's units are unsorted."""
    shape = network.shape

    def squares(site: Site, projection: Tensor) -> Tensor:
        """What each element of a site adds to the square of its unit's score, (n,) in float64."""
        found = statistics[site]
        if method == "activation":
            return found.square_sums().cpu()
        columns = projection.double().square().sum(0).cpu()
        moments = found.square_sums() if method == "wanda" else found.variances()
        return moments.cpu() * columns

    heads, channels = [], []
    for index, layer in enumerate(network.layers):
        elements = squares(Site(index, Kind.ATTENTION), layer.o.flatten(1))
        heads.append(elements.view(shape.kv_groups, shape.heads_per_group, -1).sum(-1))
        channels.append(squares(Site(index, Kind.MLP), layer.down))
    scores = UnitScores(torch.stack(heads), torch.zeros(shape.layers, shape.kv_groups), torch.stack(channels))
    return scores.map(lambda t: t if method == "fluctuation" else t.sqrt())


def magnitude(network: ElasticNetwork) -> UnitScores:
    """L2 norms of the units' weights."""
    made = [_squares_of_weights(layer, network.shape) for layer in network.layers]
    heads, groups, channels = (torch.stack([m[part] for m in made]) for part in range(3))
    return UnitScores(heads, groups, channels).map(Tensor.sqrt)


def _squares_of_weights(layer: Layer, shape: ModelShape) -> tuple[Tensor, Tensor, Tensor]:
    g, h, d = shape.kv_groups, shape.heads_per_group, shape.head_dim

    def squared(weight: Tensor) -> Tensor:
        return weight.detach().double().square().cpu()

    heads = squared(layer.q).view(g, h, d, -1).sum((2, 3)) + squared(layer.o).view(-1, g, h, d).sum((0, 3))
    groups = squared(layer.k).view(g, -1).sum(1) + squared(layer.v).view(g, -1).sum(1)
    channels = squared(layer.gate).sum(1) + squared(layer.up).sum(1) + squared(layer.down).sum(0)
    return heads, groups, channels


def random(shape: ModelShape, seed: int) -> UnitScores:
    """Uniform draws: what any other method must beat."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (shape.kv_groups, shape.heads_per_group)
    return UnitScores(
        torch.rand(shape.layers, *sizes, generator=generator),
        torch.zeros(shape.layers, shape.kv_groups),
        torch.rand(shape.layers, shape.channels, generator=generator),
    )
