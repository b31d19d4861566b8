"""The elastic network: the dense model with each site's units sorted by importance.

Any architecture is a *prefix view* of it, so that trying one copies no weight:

    q  (G, H*d, D)   [:g, :h*d]      rows of one KV group's query heads
    k  (G*d, D)      [:g*d]
    o  (D, G, H*d)   [:, :g, :h*d]
    gate, up (C, D)  [:c]
    down (D, C)      [:, :c]

G KV groups, H query heads a group, d elements a head, D hidden, C channels. KV group g serves
the query heads g*H .. g*H+H-1 (grouped-query attention, Ainslie et al. 2023, arXiv 2305.13245).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from stages.architecture import Architecture, LayerWidth, ModelShape
from stages.evaluate.checkpoint import Checkpoint
from stages.families import Family
from stages.files import InputError


@dataclass(frozen=True)
class Batch:
    """Token sequences and the predictions asked of them. All tensors lie on one device.

    tokens (B, L) and positions (B, L) of int64; mask (B, 1, L, L) of bool, true where attention
    may look, or None for plain causal attention; at (N,) indexes the flattened B*L positions
    whose next-token distribution is read; targets (N,) are the tokens expected there.
    """

    tokens: Tensor
    positions: Tensor
    mask: Tensor | None
    at: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> Batch:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return Batch(**{name: t if t is None else t.to(device) for name, t in moved.items()})


@dataclass(frozen=True)
class Layer:
    """One decoder layer's tensors, shaped as the module's docstring says; absent biases are None."""

    attention_norm: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    mlp_norm: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor
    q_bias: Tensor | None = None  # (G, H*d)
    k_bias: Tensor | None = None  # (G*d,)
    v_bias: Tensor | None = None
    o_bias: Tensor | None = None
    q_norm: Tensor | None = None  # (d,)
    k_norm: Tensor | None = None
    gate_bias: Tensor | None = None
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None


@dataclass(frozen=True)
class UnitOrder:
    """The order of units by falling importance, as indices into the checkpoint's units.

    groups (layers, G); heads (layers, G, H), row r for the group that comes r-th; channels (layers, C).
    """

    groups: Tensor
    heads: Tensor
    channels: Tensor


class ElasticNetwork:
    """A decoder whose every site can be run at every width."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        shape, state = checkpoint.shape, checkpoint.state
        self.shape: ModelShape = shape
        self.family: Family = checkpoint.family
        self.device = device
        self.layers = [_layer(checkpoint, index, device) for index in range(shape.layers)]
        self.embedding = state[self.family.embedding].to(device)
        self.final_norm = state[self.family.final_norm].to(device)
        self.head = self.embedding if shape.tied_embeddings else state[self.family.head].to(device)
        self.eps = float(checkpoint.config.rms_norm_eps)
        self.activation = _activation(checkpoint)
        rope = _rope(checkpoint)
        self._inverse_frequencies = rope.inv_freq.float().to(device)
        self._rope_scaling = float(rope.attention_scaling)

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    def sort(self, order: UnitOrder) -> None:
        """Put the units of every site into `order`. The dense network's outputs do not change."""
        for index, layer in enumerate(self.layers):
            groups, heads, channels = (
                t[index].to(self.device) for t in (order.groups, order.heads, order.channels)
            )
            self.layers[index] = _permuted(layer, self.shape, groups, heads, channels)

    # --- forward ------------------------------------------------------------------------------

    def log_likelihoods(self, architecture: Architecture, batch: Batch) -> Tensor:
        """Natural-log likelihood of every target of a batch, (N,) in float32."""
        hidden, _ = self.hidden_states(architecture, batch)
        return self.read(hidden, batch)

    def hidden_states(
        self,
        architecture: Architecture,
        batch: Batch,
        start: int = 0,
        hidden: Tensor | None = None,
        keep: Collection[int] = (),
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Run the layers from `start` on `hidden` (B, L, D), the state before that layer.

        Returns the last state, and the states before each layer in `keep`. With start 0 and no
        hidden state, the batch's tokens are embedded.
        """
        if hidden is None:
            hidden = F.embedding(batch.tokens, self.embedding)
        rope = self._rope(batch.positions)
        kept: dict[int, Tensor] = {}
        for index in range(start, self.shape.layers):
            if index in keep:
                kept[index] = hidden
            hidden = self.run_layer(index, architecture.widths[index], hidden, batch.mask, rope)
        return hidden, kept

    def run_layer(
        self, index: int, width: LayerWidth, hidden: Tensor, mask: Tensor | None, rope: tuple[Tensor, Tensor]
    ) -> Tensor:
        layer = self.layers[index]
        if width.has_attention:
            hidden = hidden + self._attention(layer, width, hidden, mask, rope)
        if width.has_mlp:
            hidden = hidden + self._mlp(layer, width.channels, hidden)
        return hidden

    def read(self, hidden: Tensor, batch: Batch, chunk: int = 512) -> Tensor:
        """Log-likelihoods (N,) of the batch's targets from the last hidden states (B, L, D).

        `chunk` predictions at a time, so that the logits (N, vocabulary) are never all in memory.
        """
        states = hidden.flatten(0, 1)[batch.at]
        parts = []
        for rows, targets in zip(states.split(chunk), batch.targets.split(chunk), strict=True):
            logits = self.logits(rows).float()
            parts.append(-F.cross_entropy(logits, targets, reduction="none"))
        return torch.cat(parts)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits (..., vocabulary) of last hidden states (..., D)."""
        return F.linear(self._norm(hidden, self.final_norm), self.head)

    def _attention(
        self, layer: Layer, width: LayerWidth, hidden: Tensor, mask: Tensor | None, rope: tuple[Tensor, Tensor]
    ) -> Tensor:
        batch, length, _ = hidden.shape
        g, h, d = width.kv_groups, width.heads_per_group, self.shape.head_dim
        x = self._norm(hidden, layer.attention_norm)
        q = _grouped_rows(x, layer.q, layer.q_bias, g, h * d).view(batch, length, g * h, d)
        k = F.linear(x, layer.k[: g * d], _prefix(layer.k_bias, g * d)).view(batch, length, g, d)
        v = F.linear(x, layer.v[: g * d], _prefix(layer.v_bias, g * d)).view(batch, length, g, d)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = self._norm(q, layer.q_norm), self._norm(k, layer.k_norm)
        q, k = _rotate(q, rope).transpose(1, 2), _rotate(k, rope).transpose(1, 2)
        v = v.transpose(1, 2)
        if h > 1:  # (B, g, L, d) -> (B, g*h, L, d): each KV head serves the h query heads of its group
            k = k[:, :, None].expand(-1, -1, h, -1, -1).reshape(batch, g * h, length, d)
            v = v[:, :, None].expand(-1, -1, h, -1, -1).reshape(batch, g * h, length, d)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return _grouped_columns(mixed.transpose(1, 2).flatten(2), layer.o, layer.o_bias, g, h * d)

    def _mlp(self, layer: Layer, channels: int, hidden: Tensor) -> Tensor:
        x = self._norm(hidden, layer.mlp_norm)
        gate = F.linear(x, layer.gate[:channels], _prefix(layer.gate_bias, channels))
        up = F.linear(x, layer.up[:channels], _prefix(layer.up_bias, channels))
        return F.linear(self.activation(gate) * up, layer.down[:, :channels], layer.down_bias)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMS norm in float32, as transformers computes it."""
        return weight * F.rms_norm(x.float(), (x.shape[-1],), None, self.eps).to(x.dtype)

    def _rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (B, L, 1, d) of rotary embeddings (Su et al. 2021, arXiv 2104.09864)."""
        angles = positions[..., None].float() * self._inverse_frequencies
        angles = torch.cat((angles, angles), dim=-1)[:, :, None]
        cos, sin = angles.cos() * self._rope_scaling, angles.sin() * self._rope_scaling
        return cos.to(self.dtype), sin.to(self.dtype)

    # --- slicing ------------------------------------------------------------------------------

    def sliced_state(self, architecture: Architecture) -> dict[str, Tensor]:
        """The architecture's own tensors, under their Hugging Face names, on the CPU.

        Dropped sublayers are absent, as is the head where it is tied to the embeddings.
        """
        family = self.family
        state = {family.embedding: self.embedding, family.final_norm: self.final_norm}
        if not self.shape.tied_embeddings:
            state[family.head] = self.head
        for index, (layer, width) in enumerate(zip(self.layers, architecture.widths, strict=True)):
            prefix = family.layer.format(layer=index)
            sliced = _sliced(layer, width, self.shape.head_dim)
            state |= {prefix + name: tensor for name, tensor in _names(family, sliced).items()}
        return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def _grouped_rows(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, rows: int) -> Tensor:
    """x (B, L, D) times weight[:groups, :rows] of a (G, R, D) weight, as (B, L, groups * rows)."""
    if rows == weight.shape[1]:  # a contiguous view: one matrix product
        flat = None if bias is None else bias[:groups].flatten()
        return F.linear(x, weight[:groups].flatten(0, 1), flat)
    parts = [F.linear(x, weight[g, :rows], None if bias is None else bias[g, :rows]) for g in range(groups)]
    return torch.cat(parts, dim=-1)


def _grouped_columns(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, columns: int) -> Tensor:
    """x (B, L, groups * columns) times weight[:, :groups, :columns] of a (D, G, R) weight, as (B, L, D)."""
    if columns == weight.shape[2]:
        return F.linear(x, weight[:, :groups].flatten(1), bias)
    total = F.linear(x[..., :columns], weight[:, 0, :columns], bias)
    for g in range(1, groups):
        total = total + F.linear(x[..., g * columns : (g + 1) * columns], weight[:, g, :columns])
    return total


def _rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary embeddings to x (B, L, heads, d), halves rotated against each other."""
    cos, sin = rope
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _prefix(bias: Tensor | None, size: int) -> Tensor | None:
    return None if bias is None else bias[:size]


def _rope(checkpoint: Checkpoint) -> LlamaRotaryEmbedding:
    parameters = getattr(checkpoint.config, "rope_parameters", None) or {}
    kind = parameters.get("rope_type", "default")
    if kind in ("dynamic", "longrope"):  # their frequencies depend on the length of the text
        raise InputError(
            f"model.source {checkpoint.name!r} uses the rope type {kind!r}, which is not supported; "
            "supported: default, linear, llama3, yarn"
        )
    return LlamaRotaryEmbedding(checkpoint.config)


def _activation(checkpoint: Checkpoint) -> torch.nn.Module:
    from transformers.activations import ACT2FN

    module = ACT2FN[checkpoint.config.hidden_act]
    assert isinstance(module, torch.nn.Module)
    return module


def _layer(checkpoint: Checkpoint, index: int, device: torch.device) -> Layer:
    family, shape, state = checkpoint.family, checkpoint.shape, checkpoint.state
    prefix = family.layer.format(layer=index)

    def tensor(name: str) -> Tensor | None:
        found = state.get(prefix + name)
        return None if found is None else found.to(device)

    def weight(name: str) -> Tensor:
        return state[f"{prefix}{name}.weight"].to(device)

    g, rows = shape.kv_groups, shape.heads_per_group * shape.head_dim
    q_bias = tensor(f"{family.q}.bias")
    return Layer(
        attention_norm=weight(family.attention_norm),
        q=weight(family.q).view(g, rows, shape.hidden),
        k=weight(family.k),
        v=weight(family.v),
        o=weight(family.o).view(shape.hidden, g, rows),
        mlp_norm=weight(family.mlp_norm),
        gate=weight(family.gate),
        up=weight(family.up),
        down=weight(family.down),
        q_bias=None if q_bias is None else q_bias.view(g, rows),
        k_bias=tensor(f"{family.k}.bias"),
        v_bias=tensor(f"{family.v}.bias"),
        o_bias=tensor(f"{family.o}.bias"),
        q_norm=tensor(f"{family.q_norm}.weight") if shape.qk_norm else None,
        k_norm=tensor(f"{family.k_norm}.weight") if shape.qk_norm else None,
        gate_bias=tensor(f"{family.gate}.bias"),
        up_bias=tensor(f"{family.up}.bias"),
        down_bias=tensor(f"{family.down}.bias"),
    )


def _permuted(layer: Layer, shape: ModelShape, groups: Tensor, heads: Tensor, channels: Tensor) -> Layer:
    g, h, d = shape.kv_groups, shape.heads_per_group, shape.head_dim
    rows = (heads[:, :, None] * d + torch.arange(d, device=heads.device)).flatten(1)  # (G, H*d)
    group_rows = (groups[:, None] * d + torch.arange(d, device=groups.device)).flatten()  # (G*d,)
    each = groups[:, None]

    def pick(tensor: Tensor | None, index: Tensor) -> Tensor | None:
        return None if tensor is None else tensor[index]

    return replace(
        layer,
        q=layer.q[each, rows],
        k=layer.k[group_rows],
        v=layer.v[group_rows],
        o=layer.o[:, each, rows].reshape(shape.hidden, g, h * d),
        gate=layer.gate[channels],
        up=layer.up[channels],
        down=layer.down[:, channels],
        q_bias=None if layer.q_bias is None else layer.q_bias[each, rows],
        k_bias=pick(layer.k_bias, group_rows),
        v_bias=pick(layer.v_bias, group_rows),
        gate_bias=pick(layer.gate_bias, channels),
        up_bias=pick(layer.up_bias, channels),
    )


def _sliced(layer: Layer, width: LayerWidth, head_dim: int) -> dict[str, Tensor | None]:
    g, rows, c = width.kv_groups, width.heads_per_group * head_dim, width.channels
    sliced: dict[str, Tensor | None] = {}
    if width.has_attention:
        sliced |= {
            "attention_norm.weight": layer.attention_norm,
            "q.weight": layer.q[:g, :rows].flatten(0, 1),
            "k.weight": layer.k[: g * head_dim],
            "v.weight": layer.v[: g * head_dim],
            "o.weight": layer.o[:, :g, :rows].flatten(1),
            "q.bias": None if layer.q_bias is None else layer.q_bias[:g, :rows].flatten(),
            "k.bias": _prefix(layer.k_bias, g * head_dim),
            "v.bias": _prefix(layer.v_bias, g * head_dim),
            "o.bias": layer.o_bias,
            "q_norm.weight": layer.q_norm,
            "k_norm.weight": layer.k_norm,
        }
    if width.has_mlp:
        sliced |= {
            "mlp_norm.weight": layer.mlp_norm,
            "gate.weight": layer.gate[:c],
            "up.weight": layer.up[:c],
            "down.weight": layer.down[:, :c],
            "gate.bias": _prefix(layer.gate_bias, c),
            "up.bias": _prefix(layer.up_bias, c),
            "down.bias": layer.down_bias,
        }
    return sliced


def _names(family: Family, sliced: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Our names ("q.weight") to the family's ("self_attn.q_proj.weight"); absent tensors fall away."""
    named = {}
    for name, tensor in sliced.items():
        part, kind = name.split(".")
        if tensor is not None:
            named[f"{getattr(family, part)}.{kind}"] = tensor
    return named


def common_prefix(a: Sequence[LayerWidth], b: Sequence[LayerWidth]) -> int:
    """How many leading layers two architectures share."""
    for index, (x, y) in enumerate(zip(a, b, strict=True)):
        if x != y:
            return index
    return len(a)
