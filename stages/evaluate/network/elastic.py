"""The elastic network: the dense model with each site's units sorted by importance.

Any architecture is a *prefix view* of it, so that trying one copies no weight (`layers` says which
prefixes). KV group g serves the query heads g*H .. g*H+H-1 (grouped-query attention, Ainslie et al.
2023, arXiv 2305.13245).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from stages.architecture import Architecture, Kind, LayerWidth, ModelShape, Site
from stages.evaluate.network.attention import attention
from stages.evaluate.network.checkpoint import Checkpoint
from stages.evaluate.network.fused import log_likelihood, rms_norm, rotate, swiglu
from stages.evaluate.network.layers import Layer, UnitOrder, layer_of, named, permuted, prefix, sliced
from stages.families import Family
from stages.files import InputError

PREDICTIONS_AT_ONCE = {"cpu": 1024, "cuda": 8192}
"""Predictions whose logits are held at once: over all of the vocabulary on a GPU, a block of it on a CPU."""


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
        mask = None if self.mask is None else self.mask.to(device)
        at, targets = self.at.to(device), self.targets.to(device)
        return Batch(self.tokens.to(device), self.positions.to(device), mask, at, targets)


Repair = Callable[[Site, LayerWidth], Tensor | None]
"""Looks up the repaired output projection (D, kept) of a site at a width; None: its own prefix."""
Observer = Callable[[Site, Tensor], None]
"""Is shown each site's activations (B, L, kept), the inputs of its output projection."""


class ElasticNetwork:
    """A decoder whose every site can be run at every width.

    `repair`, if set, replaces the output projections of pruned sites.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        shape, state = checkpoint.shape, checkpoint.state
        self.shape: ModelShape = shape
        self.family: Family = checkpoint.family
        self.device = device
        self.layers = [layer_of(checkpoint, index, device) for index in range(shape.layers)]
        self.embedding = state[self.family.embedding].to(device)
        self.final_norm = state[self.family.final_norm].to(device)
        self.head = self.embedding if shape.tied_embeddings else state[self.family.head].to(device)
        self.eps = float(checkpoint.config.rms_norm_eps)
        _check_activation(checkpoint)
        self.repair: Repair | None = None
        self._window: int | None = getattr(checkpoint.config, "sliding_window", None)
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
            self.layers[index] = permuted(layer, self.shape, groups, heads, channels)

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
        self._check_length(batch)
        ours = hidden is None  # the caller's own state, and those that are kept, must not be written over
        if hidden is None:
            hidden = F.embedding(batch.tokens, self.embedding)
        rope = self.rope(batch.positions)
        kept: dict[int, Tensor] = {}
        for index in range(start, self.shape.layers):
            if index in keep:
                kept[index], ours = hidden, False
            width = architecture.widths[index]
            hidden = self.run_layer(index, width, hidden, batch.mask, rope, ours=ours)
            ours = ours or width.has_attention or width.has_mlp
        return hidden, kept

    def observe(self, batch: Batch, observer: Observer) -> None:
        """Run the dense network on a batch and show the observer every site's activations."""
        self._check_length(batch)
        hidden = F.embedding(batch.tokens, self.embedding)
        rope = self.rope(batch.positions)
        for index in range(self.shape.layers):
            hidden = self.run_layer(index, self.shape.dense_width, hidden, batch.mask, rope, observer)

    def _check_length(self, batch: Batch) -> None:
        length = batch.tokens.shape[1]
        if self._window is not None and length > self._window:
            raise InputError(
                f"sequences of {length} tokens exceed the model's sliding window of {self._window}, "
                "beyond which it is not run; lower sequence_length or question_tokens in params.yaml"
            )

    def run_layer(
        self,
        index: int,
        width: LayerWidth,
        hidden: Tensor,
        mask: Tensor | None,
        rope: tuple[Tensor, Tensor],
        observer: Observer | None = None,
        ours: bool = False,
    ) -> Tensor:
        """One decoder layer at a width: hidden states (B, L, D) before it to those after it.

        Those before it are written over if they are `ours`, which saves a copy.
        """
        ours = ours and not torch.is_grad_enabled()
        for kind in Kind:
            if width.keeps(kind):
                site = Site(index, kind)
                activations = self.activations(site, width, hidden, mask, rope)
                if observer is not None:
                    observer(site, activations)
                hidden = self.output(site, width, activations, hidden, in_place=ours)
                ours = not torch.is_grad_enabled()
        return hidden

    def activations(
        self, site: Site, width: LayerWidth, hidden: Tensor, mask: Tensor | None, rope: tuple[Tensor, Tensor]
    ) -> Tensor:
        """A site's activations (B, L, kept), the inputs of its output projection, from hidden states."""
        if site.kind is Kind.ATTENTION:
            return self._mixed_heads(self.layers[site.layer], width, hidden, mask, rope)
        return self._gated_channels(self.layers[site.layer], width.channels, hidden)

    def output(
        self, site: Site, width: LayerWidth, activations: Tensor, onto: Tensor, in_place: bool = False
    ) -> Tensor:
        """`onto` (B, L, D) and what the site adds to it: the output projection of its activations.

        Added within the matrix product, which saves a pass over the hidden states.
        """
        layer = self.layers[site.layer]
        bias = layer.o_bias if site.kind is Kind.ATTENTION else layer.down_bias
        x, total = activations.flatten(0, 1), onto.flatten(0, 1)
        start = 0
        for part in self._projection_parts(site, width):
            own = x[:, start : start + part.shape[1]]
            total = total.addmm_(own, part.T) if in_place else torch.addmm(total, own, part.T)
            start += part.shape[1]
        return (total if bias is None else total + bias).view_as(onto)

    def _projection_parts(self, site: Site, width: LayerWidth) -> list[Tensor]:
        """`projection_views`, joined on a GPU: a pass over the hidden states costs more than that copy."""
        parts = self.projection_views(site, width)
        return parts if len(parts) == 1 or self.device.type == "cpu" else [torch.cat(parts, dim=1)]

    def projection_views(self, site: Site, width: LayerWidth) -> list[Tensor]:
        """A site's output projection (D, kept) in views side by side, without copying a weight."""
        repaired = None if self.repair is None else self.repair(site, width)
        layer, (g, h) = self.layers[site.layer], width.of(Kind.ATTENTION)
        if repaired is not None:
            return [repaired]
        if site.kind is Kind.MLP:
            return [layer.down[:, : width.channels]]
        if h == self.shape.heads_per_group:
            return [layer.o[:, :g].flatten(1)]
        return [layer.o[:, group, : h * self.shape.head_dim] for group in range(g)]

    def projection(self, site: Site, width: LayerWidth) -> Tensor:
        """A site's output projection (D, kept) at a width, repaired if a repair is set."""
        return torch.cat(self.projection_views(site, width), dim=1)

    def read(self, hidden: Tensor, batch: Batch, chunk: int | None = None) -> Tensor:
        """Log-likelihoods (N,) of the batch's targets from the last hidden states (B, L, D).

        `chunk` predictions at a time, so that the logits (N, vocabulary) are never all in memory.
        """
        chunk = chunk or PREDICTIONS_AT_ONCE[self.device.type]
        states = rms_norm(hidden.flatten(0, 1)[batch.at], self.final_norm, self.eps)
        pairs = zip(states.split(chunk), batch.targets.split(chunk), strict=True)
        return torch.cat([log_likelihood(rows, self.head, targets) for rows, targets in pairs])

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits (..., vocabulary) of last hidden states (..., D)."""
        return F.linear(rms_norm(hidden, self.final_norm, self.eps), self.head)

    def _mixed_heads(
        self,
        layer: Layer,
        width: LayerWidth,
        hidden: Tensor,
        mask: Tensor | None,
        rope: tuple[Tensor, Tensor],
    ) -> Tensor:
        batch, length, _ = hidden.shape
        g, h, d = width.kv_groups, width.heads_per_group, self.shape.head_dim
        x = rms_norm(hidden, layer.attention_norm, self.eps)
        q = grouped_rows(x, layer.q, layer.q_bias, g, h * d, whole=x.is_cuda).unflatten(-1, (h, d))
        k = F.linear(x, layer.k[: g * d], prefix(layer.k_bias, g * d)).view(batch, length, g, d)
        v = F.linear(x, layer.v[: g * d], prefix(layer.v_bias, g * d)).view(batch, length, g, d)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = rms_norm(q, layer.q_norm, self.eps), rms_norm(k, layer.k_norm, self.eps)
        q, k = rotate(q, k, *rope)
        return attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask)  # (B, L, g*h*d)

    def _gated_channels(self, layer: Layer, channels: int, hidden: Tensor) -> Tensor:
        x = rms_norm(hidden, layer.mlp_norm, self.eps)
        gate = F.linear(x, layer.gate[:channels], prefix(layer.gate_bias, channels))
        up = F.linear(x, layer.up[:channels], prefix(layer.up_bias, channels))
        return swiglu(gate, up)  # (B, L, c)

    def rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (B, L, 1, d) of rotary embeddings (Su et al. 2021, arXiv 2104.09864).

        The sines of the first half are negative, as `rotate` wants them.
        """
        angles = (positions[..., None].float() * self._inverse_frequencies)[:, :, None]
        cos, sin = angles.cos() * self._rope_scaling, angles.sin() * self._rope_scaling
        return torch.cat((cos, cos), dim=-1).to(self.dtype), torch.cat((-sin, sin), dim=-1).to(self.dtype)

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
            kept = sliced(layer, width, self.shape.head_dim)
            for kind, name in ((Kind.ATTENTION, "o.weight"), (Kind.MLP, "down.weight")):
                if width.keeps(kind):
                    kept[name] = self.projection(Site(index, kind), width)
            state |= {prefix + name: tensor for name, tensor in named(family, kept).items()}
        return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def grouped_rows(
    x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, rows: int, whole: bool
) -> Tensor:
    """x (B, L, D) times weight[:groups, :rows] of a (G, R, D) weight, as (B, L, groups, rows).

    Whole groups are a contiguous view: one matrix product. Parts of groups are a product a group, or
    a view of the `whole` product, which on a GPU costs less.
    """
    if whole or rows == weight.shape[1]:
        flat = None if bias is None else bias[:groups].flatten()
        product: Tensor = F.linear(x, weight[:groups].flatten(0, 1), flat).unflatten(-1, (groups, -1))
        return product[..., :rows]
    parts = [F.linear(x, weight[g, :rows], None if bias is None else bias[g, :rows]) for g in range(groups)]
    return torch.stack(parts, dim=2)


def _rope(checkpoint: Checkpoint) -> LlamaRotaryEmbedding:
    parameters = getattr(checkpoint.config, "rope_parameters", None) or {}
    kind = parameters.get("rope_type", "default")
    if kind in ("dynamic", "longrope"):  # their frequencies depend on the length of the text
        raise InputError(
            f"model.source {checkpoint.name!r} uses the rope type {kind!r}, which is not supported; "
            "supported: default, linear, llama3, yarn"
        )
    return LlamaRotaryEmbedding(checkpoint.config)


def _check_activation(checkpoint: Checkpoint) -> None:
    found = checkpoint.config.hidden_act
    if found not in ("silu", "swish"):
        raise InputError(f"model.source {checkpoint.name!r} has the activation {found!r}; supported: silu")
