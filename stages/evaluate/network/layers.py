"""One decoder layer's tensors: taken from a state dict, put into an order, cut to a width.

    q  (G, H*d, D)   rows of each KV group's query heads        kept: [:g, :h*d]
    k, v  (G*d, D)                                              kept: [:g*d]
    o  (D, G, H*d)                                              kept: [:, :g, :h*d]
    gate, up  (C, D)                                            kept: [:c]
    down  (D, C)                                                kept: [:, :c]
    q_norm  (d,), or (G, H*d) and k_norm (G*d,)                 kept: whole, or as q and k

G KV groups, H query heads a group, d elements a head, D hidden, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import overload

import torch
from torch import Tensor

from stages.architecture import Kind, LayerWidth, ModelShape, Site
from stages.evaluate.results.scores import UnitOrder
from stages.families import Family

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Layer:
    """One decoder layer's tensors, shaped as said above; absent biases and norms are None."""

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor
    attention_norm: Tensor | None = None  # (D,), as the others of sublayers
    mlp_norm: Tensor | None = None
    attention_norm_after: Tensor | None = None
    mlp_norm_after: Tensor | None = None
    q_bias: Tensor | None = None  # (G, H*d)
    k_bias: Tensor | None = None  # (G*d,)
    v_bias: Tensor | None = None
    o_bias: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    gate_bias: Tensor | None = None
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None

    def norm_after(self, kind: Kind) -> Tensor | None:
        """The norm (D,) of what a sublayer makes, before that is added."""
        return self.attention_norm_after if kind is Kind.ATTENTION else self.mlp_norm_after


class OneAtATime(Sequence[Layer]):
    """Layers that are made when they are asked for, the last one being held.

    Where a network's are run in turn, over all of a text each, a device holds one of them.
    """

    def __init__(self, count: int, make: Callable[[int], Layer]) -> None:
        self._count = count
        self._make = make
        self._held: tuple[int, Layer] | None = None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Layer: ...
    @overload
    def __getitem__(self, index: slice) -> list[Layer]: ...
    def __getitem__(self, index: int | slice) -> Layer | list[Layer]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not 0 <= index < self._count:
            raise IndexError(index)
        if self._held is None or self._held[0] != index:
            self._held = None  # before the next is made
            self._held = index, self._make(index)
        return self._held[1]


def prefix(tensor: Tensor | None, size: int) -> Tensor | None:
    """The first `size` entries of a tensor that may be absent."""
    return None if tensor is None else tensor[:size]


def apart(
    state: Mapping[str, Tensor], family: Family, shape: ModelShape, index: int, width: LayerWidth
) -> Mapping[str, Tensor]:
    """A state dict in which the parts of a layer's fused projections have names of their own, as views."""
    if not family.fused:
        return state
    key = width.kv_groups * shape.head_dim
    rows = {family.q: key * width.heads_per_group, family.k: key, family.v: key}
    rows |= {family.gate: width.channels, family.up: width.channels}
    prefix, found = family.layer.format(layer=index), dict(state)
    for one, parts in family.fused.items():
        if (whole := state.get(f"{prefix}{one}.weight")) is not None:
            pieces = whole.split([rows[part] for part in parts])
            found |= {f"{prefix}{p}.weight": piece for p, piece in zip(parts, pieces, strict=True)}
    return found


def layer_of(
    state: Mapping[str, Tensor], family: Family, shape: ModelShape, index: int, width: LayerWidth
) -> Layer:
    """A layer of a state dict whose tensors have that width, as views of them.

    `shape` is the dense model's. Tensors of a sublayer that the width drops are empty.
    """
    prefix, state = family.layer.format(layer=index), apart(state, family, shape, index, width)

    def tensor(name: str) -> Tensor | None:
        return state.get(prefix + name)

    def weight(name: str, kind: Kind, *size: int) -> Tensor:
        if not width.keeps(kind):
            return torch.empty(size)
        return state[f"{prefix}{name}.weight"].view(size)

    def norm(name: str | None) -> Tensor | None:
        return tensor(f"{name}.weight") if name else None

    g, rows, keys = width.kv_groups, width.heads_per_group * shape.head_dim, width.kv_groups * shape.head_dim
    q_bias = tensor(f"{family.q}.bias")
    q_norm = tensor(f"{family.q_norm}.weight") if shape.qk_norm else None
    return Layer(
        attention_norm=norm(family.attention_norm),
        mlp_norm=norm(family.mlp_norm),
        attention_norm_after=norm(family.attention_norm_after),
        mlp_norm_after=norm(family.mlp_norm_after),
        q=weight(family.q, Kind.ATTENTION, g, rows, shape.hidden),
        k=weight(family.k, Kind.ATTENTION, keys, shape.hidden),
        v=weight(family.v, Kind.ATTENTION, keys, shape.hidden),
        o=weight(family.o, Kind.ATTENTION, shape.hidden, g, rows),
        gate=weight(family.gate, Kind.MLP, width.channels, shape.hidden),
        up=weight(family.up, Kind.MLP, width.channels, shape.hidden),
        down=weight(family.down, Kind.MLP, shape.hidden, width.channels),
        q_bias=None if q_bias is None else q_bias.view(g, rows),
        k_bias=tensor(f"{family.k}.bias"),
        v_bias=tensor(f"{family.v}.bias"),
        o_bias=tensor(f"{family.o}.bias"),
        q_norm=q_norm.view(g, rows) if q_norm is not None and shape.qk_norm_whole else q_norm,
        k_norm=tensor(f"{family.k_norm}.weight") if shape.qk_norm else None,
        gate_bias=tensor(f"{family.gate}.bias"),
        up_bias=tensor(f"{family.up}.bias"),
        down_bias=tensor(f"{family.down}.bias"),
    )


def sorted_elements(order: UnitOrder, site: Site, shape: ModelShape) -> Tensor:
    """Where the elements of a site's sorted activations stand in the checkpoint's, (n,) of int64."""
    groups, of_groups, channels = units_of(order, shape, site.layer)
    if site.kind is Kind.MLP:
        return channels
    heads = groups[:, None] * of_groups.shape[1] + of_groups
    return (heads[..., None] * shape.head_dim + torch.arange(shape.head_dim)).flatten()


def units_of(
    order: UnitOrder, shape: ModelShape, index: int, device: torch.device = CPU
) -> tuple[Tensor, Tensor, Tensor]:
    """The order of one layer's groups (g,), heads (g, h) and channels (c,), of which it has so many."""
    g, h, c = shape.widths[index]
    groups, heads, channels = order.groups[index, :g], order.heads[index, :g, :h], order.channels[index, :c]
    found = (torch.from_numpy(part).to(device) for part in (groups, heads, channels))
    return next(found), next(found), next(found)


def permuted(layer: Layer, shape: ModelShape, groups: Tensor, heads: Tensor, channels: Tensor) -> Layer:
    """The layer with its units in another order, that of `units_of`."""
    (g, h), d = heads.shape, shape.head_dim
    rows = (heads[:, :, None] * d + torch.arange(d, device=heads.device)).flatten(1)  # (G, H*d)
    group_rows = (groups[:, None] * d + torch.arange(d, device=groups.device)).flatten()  # (G*d,)
    each, whole = groups[:, None], shape.qk_norm_whole

    def pick(tensor: Tensor | None, index: Tensor) -> Tensor | None:
        return None if tensor is None else tensor[index]

    if len(groups):
        layer = replace(
            layer,
            q=layer.q[each, rows],
            k=layer.k[group_rows],
            v=layer.v[group_rows],
            o=layer.o[:, each, rows].reshape(shape.hidden, g, h * d),
            q_norm=layer.q_norm[each, rows] if layer.q_norm is not None and whole else layer.q_norm,
            k_norm=pick(layer.k_norm, group_rows) if whole else layer.k_norm,
            q_bias=None if layer.q_bias is None else layer.q_bias[each, rows],
            k_bias=pick(layer.k_bias, group_rows),
            v_bias=pick(layer.v_bias, group_rows),
        )
    if len(channels):
        layer = replace(
            layer,
            gate=layer.gate[channels],
            up=layer.up[channels],
            down=layer.down[:, channels],
            gate_bias=pick(layer.gate_bias, channels),
            up_bias=pick(layer.up_bias, channels),
        )
    return layer


def sliced(layer: Layer, width: LayerWidth, head_dim: int) -> dict[str, Tensor | None]:
    """What a width keeps but the output projections, by field and kind (``q.weight``)."""
    g, rows, c = width.kv_groups, width.heads_per_group * head_dim, width.channels
    q_norm, k_norm = norms_of_heads(layer, width, head_dim)
    sliced: dict[str, Tensor | None] = {}
    if width.has_attention:
        sliced |= {
            "attention_norm.weight": layer.attention_norm,
            "attention_norm_after.weight": layer.attention_norm_after,
            "q.weight": layer.q[:g, :rows].flatten(0, 1),
            "k.weight": layer.k[: g * head_dim],
            "v.weight": layer.v[: g * head_dim],
            "q.bias": None if layer.q_bias is None else layer.q_bias[:g, :rows].flatten(),
            "k.bias": prefix(layer.k_bias, g * head_dim),
            "v.bias": prefix(layer.v_bias, g * head_dim),
            "o.bias": layer.o_bias,
            "q_norm.weight": q_norm,
            "k_norm.weight": k_norm,
        }
    if width.has_mlp:
        sliced |= {
            "mlp_norm.weight": layer.mlp_norm,
            "mlp_norm_after.weight": layer.mlp_norm_after,
            "gate.weight": layer.gate[:c],
            "up.weight": layer.up[:c],
            "gate.bias": prefix(layer.gate_bias, c),
            "up.bias": prefix(layer.up_bias, c),
            "down.bias": layer.down_bias,
        }
    return sliced


def norms_of_heads(layer: Layer, width: LayerWidth, head_dim: int) -> tuple[Tensor | None, Tensor | None]:
    """The norms of queries and keys at a width: one head's (d,), or of all that are kept (g*h*d,), (g*d,)."""
    q_norm, k_norm = layer.q_norm, layer.k_norm
    if q_norm is None or q_norm.dim() == 1:
        return q_norm, k_norm
    queries = q_norm[: width.kv_groups, : width.heads_per_group * head_dim].flatten()
    return queries, prefix(k_norm, width.kv_groups * head_dim)


def named(family: Family, sliced: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Our names ("q.weight") to the family's ("self_attn.q_proj.weight"); absent tensors fall away.

    What the family keeps as one is put together.
    """
    named = {}
    for name, tensor in sliced.items():
        part, kind = name.split(".")
        if tensor is not None:
            named[f"{getattr(family, part)}.{kind}"] = tensor
    for one, parts in family.fused.items():
        if f"{parts[0]}.weight" in named:
            named[f"{one}.weight"] = torch.cat([named.pop(f"{part}.weight") for part in parts])
    return named
