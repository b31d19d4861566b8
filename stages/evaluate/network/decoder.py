"""A decoder-only network whose every site runs at any width, as views of its layers' tensors.

Trying an architecture copies no weight (`layers` says which prefixes a width keeps). KV group g serves
the query heads g*H .. g*H+H-1 (grouped-query attention, Ainslie et al. 2023, arXiv 2305.13245).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.architecture import Architecture, Kind, LayerWidth, ModelShape, Site
from stages.evaluate.network.attention import attention
from stages.evaluate.network.batch import Batch
from stages.evaluate.network.fused import GATES, log_likelihood, rms_norm, rotate
from stages.evaluate.network.layers import Layer, named, norms_of_heads, prefix, sliced
from stages.evaluate.network.places import Places
from stages.evaluate.network.repair import NOTHING_REPAIRED, Repair
from stages.evaluate.network.rotary import Rotations, Turn
from stages.families import BlockRecipe, Family

VERSION = 1
"""The version of what the network computes, set by hand: all that is kept of a run of it carries it."""
PREDICTIONS_AT_ONCE = {"cpu": 1024, "cuda": 8192}
"""Predictions whose logits are held at once: over all of the vocabulary on a GPU, a block of it on a CPU."""


Observer = Callable[[Site, Tensor], None]
"""Is shown each site's activations (B, L, kept), the inputs of its output projection."""


@dataclass(frozen=True)
class Surroundings:
    """What a decoder has besides its layers, on one device, and the arithmetic that its layers share.

    embedding (V, D), final_norm (D,), head (V, D): the embedding itself where they are tied.
    """

    shape: ModelShape
    family: Family
    device: torch.device
    embedding: Tensor
    final_norm: Tensor
    head: Tensor
    recipe: BlockRecipe
    rotations: Rotations

    @classmethod
    def of(
        cls,
        shape: ModelShape,
        family: Family,
        recipe: BlockRecipe,
        config: Any,
        state: Mapping[str, Tensor],
    ) -> Surroundings:
        """What a state dict holds of them, where its tensors lie; `config` is the model's in transformers."""
        embedding = state[family.embedding]
        return cls(
            shape=shape,
            family=family,
            device=embedding.device,
            embedding=embedding,
            final_norm=state[family.final_norm],
            head=embedding if shape.tied_embeddings else state[family.head],
            recipe=recipe,
            rotations=Rotations.of(recipe.rotary, config, embedding.device),
        )


class Decoder:
    """A decoder whose every site can be run at every width that its layers have.

    Where a call takes a `repair`, that replaces the output projections of pruned sites.
    """

    def __init__(self, surroundings: Surroundings, layers: Sequence[Layer]) -> None:
        self.surroundings = surroundings
        self.shape = surroundings.shape
        self.family = surroundings.family
        self.device = surroundings.device
        self.embedding = surroundings.embedding
        self.final_norm = surroundings.final_norm
        self.head = surroundings.head
        self.recipe = surroundings.recipe
        self.layers = layers

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    def log_likelihoods(
        self, architecture: Architecture, batch: Batch, repair: Repair = NOTHING_REPAIRED
    ) -> Tensor:
        """Natural-log likelihood of every target of a batch, (N,) in float32."""
        hidden, _ = self.hidden_states(architecture, batch, repair=repair)
        return self.read(hidden, batch)

    def hidden_states(
        self,
        architecture: Architecture,
        batch: Batch,
        start: int = 0,
        hidden: Tensor | None = None,
        keep: Collection[int] = (),
        repair: Repair = NOTHING_REPAIRED,
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Run the layers from `start` on `hidden` (B, L, D), the state before that layer.

        Returns the last state, and the states before each layer in `keep`. With start 0 and no
        hidden state, the batch's tokens are embedded.
        """
        ours = hidden is None  # the caller's own state, and those that are kept, must not be written over
        if hidden is None:
            hidden = self.embed(batch.tokens)
        places = self.places(batch)
        kept: dict[int, Tensor] = {}
        for index in range(start, self.shape.layers):
            if index in keep:
                kept[index], ours = hidden, False
            width = architecture.widths[index]
            hidden = self.run_layer(index, width, hidden, places, ours=ours, repair=repair)
            ours = ours or width.has_attention or width.has_mlp
        return hidden, kept

    def observe(self, batch: Batch, observer: Observer) -> None:
        """Run the dense network on a batch and show the observer every site's activations."""
        hidden, places = self.embed(batch.tokens), self.places(batch)
        for index in range(self.shape.layers):
            hidden = self.run_layer(index, self.shape.widths[index], hidden, places, observer)

    def embed(self, tokens: Tensor) -> Tensor:
        """Hidden states (B, L, D) before the first layer, of tokens (B, L)."""
        hidden, scale = F.embedding(tokens, self.embedding), self.recipe.embedding_scale
        if self.recipe.embedding_scale_rounded:
            return hidden * hidden.new_tensor(scale)
        return hidden if scale == 1 else hidden * scale

    def run_layer(
        self,
        index: int,
        width: LayerWidth,
        hidden: Tensor,
        places: Places,
        observer: Observer | None = None,
        ours: bool = False,
        repair: Repair = NOTHING_REPAIRED,
    ) -> Tensor:
        """One decoder layer at a width: hidden states (B, L, D) before it to those after it.

        Those before it are written over if they are `ours`, which saves a copy.
        """
        ours = ours and not torch.is_grad_enabled()
        for kind in Kind:
            if width.keeps(kind):
                site = Site(index, kind)
                activations = self.activations(site, width, hidden, places)
                if observer is not None:
                    observer(site, activations)
                hidden = self.output(site, width, activations, hidden, in_place=ours, repair=repair)
                ours = not torch.is_grad_enabled()
        return hidden

    def activations(self, site: Site, width: LayerWidth, hidden: Tensor, places: Places) -> Tensor:
        """A site's activations (B, L, kept), the inputs of its output projection, from hidden states."""
        if site.kind is Kind.ATTENTION:
            mask, turn = places.masks[site.layer], places.turns[site.layer]
            return self._mixed_heads(self.layers[site.layer], width, hidden, mask, turn)
        return self._gated_channels(self.layers[site.layer], width.channels, hidden)

    def output(
        self,
        site: Site,
        width: LayerWidth,
        activations: Tensor,
        onto: Tensor,
        in_place: bool = False,
        repair: Repair = NOTHING_REPAIRED,
    ) -> Tensor:
        """`onto` (B, L, D) and what the site adds to it: the scaled output projection of its activations.

        Added within the matrix product, which saves a pass over the hidden states, unless it is normed first.
        """
        layer = self.layers[site.layer]
        if (norm := layer.norm_after(site.kind)) is not None:
            made = self.norm(self.made(site, width, activations, repair), norm)
            return torch.add(onto, made, alpha=self.recipe.residual_scale, out=onto if in_place else None)
        bias = self.output_bias(site)
        x, total, scale = activations.flatten(0, 1), onto.flatten(0, 1), self.recipe.residual_scale
        start = 0
        for part in self._projection_parts(site, width, repair):
            own = x[:, start : start + part.shape[1]]
            add = total.addmm_ if in_place else partial(torch.addmm, total)
            total = add(own, part.T, alpha=scale)
            start += part.shape[1]
        return (total if bias is None else total.add(bias, alpha=scale)).view_as(onto)

    def made(
        self, site: Site, width: LayerWidth, activations: Tensor, repair: Repair = NOTHING_REPAIRED
    ) -> Tensor:
        """What a site's output projection makes of its activations, (B, L, D), before a norm behind it."""
        return F.linear(activations, self.projection(site, width, repair), self.output_bias(site))

    def share(self, site: Site, width: LayerWidth, activations: Tensor) -> Tensor | None:
        """What a norm behind a site multiplies each token of its output by, (B, L, 1) in float32.

        None where there is no norm: what is made is added as it is.
        """
        if self.layers[site.layer].norm_after(site.kind) is None:
            return None
        made = self.made(site, width, activations)
        return (made.float().square().mean(-1, keepdim=True) + self.recipe.norm_eps).rsqrt()

    def output_bias(self, site: Site) -> Tensor | None:
        """The bias (D,) of a site's output projection."""
        layer = self.layers[site.layer]
        return layer.o_bias if site.kind is Kind.ATTENTION else layer.down_bias

    def output_weight(self, site: Site) -> Tensor:
        """The whole output projection (D, n) of a site, as a view."""
        layer = self.layers[site.layer]
        return layer.o.flatten(1) if site.kind is Kind.ATTENTION else layer.down

    def added_weight(self, site: Site) -> Tensor:
        """The output projection (D, n) of a site, its rows scaled as a norm behind it scales them."""
        weight, norm = self.output_weight(site), self.layers[site.layer].norm_after(site.kind)
        return weight if norm is None else weight * (norm + self.recipe.norm_offset)[:, None]

    def _projection_parts(self, site: Site, width: LayerWidth, repair: Repair) -> list[Tensor]:
        """`projection_views`, joined on a GPU: a pass over the hidden states costs more than that copy."""
        parts = self.projection_views(site, width, repair)
        return parts if len(parts) == 1 or self.device.type == "cpu" else [torch.cat(parts, dim=1)]

    def projection_views(
        self, site: Site, width: LayerWidth, repair: Repair = NOTHING_REPAIRED
    ) -> list[Tensor]:
        """A site's output projection (D, kept) in views side by side, without copying a weight."""
        repaired = repair.projection(site, width)
        layer, (g, h) = self.layers[site.layer], width.of(Kind.ATTENTION)
        if repaired is not None:
            return [repaired]
        if site.kind is Kind.MLP:
            return [layer.down[:, : width.channels]]
        if h * self.shape.head_dim == layer.o.shape[2]:
            return [layer.o[:, :g].flatten(1)]
        return [layer.o[:, group, : h * self.shape.head_dim] for group in range(g)]

    def projection(self, site: Site, width: LayerWidth, repair: Repair = NOTHING_REPAIRED) -> Tensor:
        """A site's output projection (D, kept) at a width; a view where it is in one piece."""
        parts = self.projection_views(site, width, repair)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def read(self, hidden: Tensor, batch: Batch, chunk: int | None = None) -> Tensor:
        """Log-likelihoods (N,) of the batch's targets from the last hidden states (B, L, D).

        `chunk` predictions at a time, so that the logits (N, vocabulary) are never all in memory.
        """
        chunk = chunk or PREDICTIONS_AT_ONCE[self.device.type]
        states = self.normed(hidden.flatten(0, 1)[batch.at])
        pairs = zip(states.split(chunk), batch.targets.split(chunk), strict=True)
        return torch.cat([log_likelihood(rows, self.head, targets) for rows, targets in pairs])

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits (..., vocabulary) of last hidden states (..., D)."""
        return F.linear(self.normed(hidden), self.head)

    def normed(self, hidden: Tensor) -> Tensor:
        """Last hidden states, normed and scaled as logits are, which are linear in them."""
        states, scale = self.norm(hidden, self.final_norm), self.recipe.logits_scale
        return states if scale == 1 else states * scale

    def norm(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """The RMS norm of x (..., D), as the recipe has it; x itself where there is none."""
        recipe = self.recipe
        if weight is None:
            return x
        return rms_norm(x, weight, recipe.norm_eps, recipe.norm_offset, recipe.norm_in_float32)

    def _mixed_heads(
        self, layer: Layer, width: LayerWidth, hidden: Tensor, mask: Tensor | None, turn: Turn | None
    ) -> Tensor:
        """What attention mixes for each query head, (B, L, g*h*d)."""
        batch, length, _ = hidden.shape
        g, h, d = width.kv_groups, width.heads_per_group, self.shape.head_dim
        x = self.norm(hidden, layer.attention_norm)
        q = grouped_rows(x, layer.q, layer.q_bias, g, h * d, whole=x.is_cuda).unflatten(-1, (h, d))
        k = F.linear(x, layer.k[: g * d], prefix(layer.k_bias, g * d)).view(batch, length, g, d)
        v = F.linear(x, layer.v[: g * d], prefix(layer.v_bias, g * d)).view(batch, length, g, d)
        q_norm, k_norm = norms_of_heads(layer, width, d)
        if self.recipe.qk_norm_whole:
            q = self.norm(q.flatten(2), q_norm).view_as(q)
            k = self.norm(k.flatten(2), k_norm).view_as(k)
        else:
            q, k = self.norm(q, q_norm), self.norm(k, k_norm)
        q, k = (q.flatten(2, 3), k) if turn is None else rotate(q, k, *turn)
        scale = self.recipe.attention_scale
        return attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, scale)

    def _gated_channels(self, layer: Layer, channels: int, hidden: Tensor) -> Tensor:
        x = self.norm(hidden, layer.mlp_norm)
        gate = F.linear(x, layer.gate[:channels], prefix(layer.gate_bias, channels))
        up = F.linear(x, layer.up[:channels], prefix(layer.up_bias, channels))
        return GATES[self.recipe.activation](gate, up)  # (B, L, c)

    def places(self, batch: Batch) -> Places:
        """What the places of a batch's tokens are to every layer."""
        dtype = torch.float32 if self.recipe.rotary_in_float32 else self.dtype
        return Places.of(batch, self.surroundings.rotations, self.recipe.windows, dtype)

    def sliced_state(
        self,
        architecture: Architecture,
        repair: Repair = NOTHING_REPAIRED,
        dtype: torch.dtype | None = None,
    ) -> dict[str, Tensor]:
        """The architecture's own tensors, under their Hugging Face names, on the CPU.

        In `dtype`, or the network's; layer by layer, so that nothing else is held beside them. Dropped
        sublayers are absent, as is the head where it is tied to the embeddings.
        """
        family = self.family
        outside = {family.embedding: self.embedding, family.final_norm: self.final_norm}
        if not self.shape.tied_embeddings:
            outside[family.head] = self.head
        state = _own(outside, dtype)
        for index, (layer, width) in enumerate(zip(self.layers, architecture.widths, strict=True)):
            prefix = family.layer.format(layer=index)
            kept = sliced(layer, width, self.shape.head_dim)
            for kind, name in ((Kind.ATTENTION, "o.weight"), (Kind.MLP, "down.weight")):
                if width.keeps(kind):
                    kept[name] = self.projection(Site(index, kind), width, repair)
            state |= _own({prefix + name: t for name, t in named(family, kept).items()}, dtype)
        return state


def _own(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Copies on the CPU, each with a storage of its own."""
    return {
        name: torch.empty(t.shape, dtype=dtype or t.dtype).copy_(t.detach()) for name, t in tensors.items()
    }


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
