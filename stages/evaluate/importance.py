"""How much each unit matters: the scores by which the units of a site are sorted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stages.evaluate.elastic import Batch, ElasticNetwork
from stages.evaluate.layers import UnitOrder
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
        save_file(tensors, temporary, metadata={"key": key})
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


def taylor(network: ElasticNetwork, calibration: Batch) -> UnitScores:
    """First-order Taylor importance: |weight x gradient| summed over each unit's weights.

    The gradient is that of the mean next-token loss over the calibration batch. LLM-Pruner's
    element-wise criterion (Ma et al. 2023, arXiv 2305.11627, eq. 5 to first order), as the paper
    uses it. Each weight's gradient is folded into scores and freed as soon as the backward pass
    has made it, so one layer's gradients at most are in memory at a time.
    """
    shape = network.shape
    layers, g, h, d = shape.layers, shape.kv_groups, shape.heads_per_group, shape.head_dim
    heads = torch.zeros(layers, g, h)
    groups = torch.zeros(layers, g)
    channels = torch.zeros(layers, shape.channels)

    def by_head_rows(s: Tensor) -> Tensor:  # (G, H*d, D) -> (G, H)
        return s.view(g, h, d, -1).sum((2, 3))

    def by_head_columns(s: Tensor) -> Tensor:  # (D, G, H*d) -> (G, H)
        return s.view(-1, g, h, d).sum((0, 3))

    def by_group(s: Tensor) -> Tensor:  # (G*d, D) -> (G,)
        return s.view(g, -1).sum(1)

    handles = []
    weights = []
    for index, layer in enumerate(network.layers):
        folds: list[tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]] = [
            (layer.q, heads[index], by_head_rows),
            (layer.o, heads[index], by_head_columns),
            (layer.k, groups[index], by_group),
            (layer.v, groups[index], by_group),
            (layer.gate, channels[index], lambda s: s.sum(1)),
            (layer.up, channels[index], lambda s: s.sum(1)),
            (layer.down, channels[index], lambda s: s.sum(0)),
        ]
        for weight, scores, fold in folds:
            weight.requires_grad_(True)
            weights.append(weight)
            handles.append(weight.register_post_accumulate_grad_hook(_folding(scores, fold)))
    try:
        dense = shape.dense()
        loss = -network.log_likelihoods(dense, calibration).mean()
        loss.backward()
    finally:
        for handle in handles:
            handle.remove()
        for weight in weights:
            weight.requires_grad_(False)
            weight.grad = None
    return UnitScores(heads=heads, groups=groups, channels=channels)


def _folding(scores: Tensor, fold: Callable[[Tensor], Tensor]) -> Callable[[Tensor], None]:
    def hook(weight: Tensor) -> None:
        assert weight.grad is not None
        salience = (weight.detach() * weight.grad).abs_().float()
        scores.add_(fold(salience).cpu())
        weight.grad = None

    return hook
