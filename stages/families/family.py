"""A model family: where its checkpoints keep their weights, and what its configuration means.

To add a family, write a `Family` and enter it in `stages.families.FAMILIES`. Standard library only, so
that `sample` can read a shape without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stages.architecture import Kind, LayerWidth, ModelShape
from stages.families.configuration import Config, ConfigurationError, Key
from stages.families.recipe import BlockRecipe

Dimensions = Mapping[str, int]
"""The sizes of a tensor, in order, by the keys of config.json that decide them."""


def usual_shape(config: Config, recipe: BlockRecipe) -> ModelShape:
    """The shape under the names that most configurations use.

    Raises:
        ConfigurationError: the heads cannot be shared out, or be turned by a rotary embedding.
    """
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    kv_groups = int(config.get("num_key_value_heads") or heads)
    if heads % kv_groups:
        raise ConfigurationError(
            f"num_attention_heads is {heads} and num_key_value_heads {kv_groups}; expected a whole number of "
            "query heads for each key-value head"
        )
    if not config.get("head_dim") and hidden % heads:
        raise ConfigurationError(
            f"hidden_size is {hidden} and num_attention_heads {heads}; expected a multiple, or a head_dim"
        )
    head_dim = int(config.get("head_dim") or hidden // heads)
    if head_dim % 2:
        raise ConfigurationError(f"the head size (head_dim) is {head_dim}; expected an even number")
    return ModelShape(
        family=str(config["model_type"]),
        layers=int(config["num_hidden_layers"]),
        hidden=hidden,
        kv_groups=kv_groups,
        heads_per_group=heads // kv_groups,
        head_dim=head_dim,
        channels=int(config["intermediate_size"]),
        vocabulary=int(config["vocab_size"]),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=recipe.qkv_bias,
        o_bias=recipe.o_bias,
        mlp_bias=recipe.mlp_bias,
        qk_norm=recipe.qk_norm,
        qk_norm_whole=recipe.qk_norm_whole,
        sublayer_norms=recipe.norm_before + recipe.norm_after,
    )


def usual_settings(shape: ModelShape) -> dict[str, Any]:
    """The inverse of `usual_shape`, as far as it goes: a configuration of a model of that shape."""
    return {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.kv_groups * shape.heads_per_group,
        "num_key_value_heads": shape.kv_groups,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.channels,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied_embeddings,
        "attention_bias": shape.o_bias,
        "mlp_bias": shape.mlp_bias,
        "sliding_window": None,
        "pad_token_id": None,  # a family's own may lie beyond the vocabulary
    }


@dataclass(frozen=True)
class Family:
    """What sets a family apart. Names are relative to a decoder layer unless they start with ``model.``.

    `recipe` and `shape` read a configuration under the names of Hugging Face's config.json, in which every
    one of `USUAL_KEYS` and of `keys` stands. They raise `ConfigurationError`, KeyError, TypeError or
    ValueError where it lacks a size or holds a bad one; `recipe` raises `UnsupportedPieceError` for what no
    recipe can say. `settings` makes a configuration out of a shape.
    """

    model_type: str
    """Its name in config.json; transformers' own classes of that type are what is exported."""
    recipe: Callable[[Config], BlockRecipe]
    shape: Callable[[Config, BlockRecipe], ModelShape] = usual_shape
    settings: Callable[[ModelShape], dict[str, Any]] = usual_settings
    keys: Mapping[str, Key] = field(default_factory=dict)
    """Keys of its configuration that are its own, or mean something unusual where they are left out."""
    by_layer: tuple[str, ...] = ("layer_types",)
    """Lists in its configuration that have an entry a layer."""
    layer: str = "model.layers.{layer}."
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    o: str = "self_attn.o_proj"
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Projections that its checkpoints keep as one, by that one's name: rows one below the other."""
    attention_norm: str | None = "input_layernorm"
    mlp_norm: str | None = "post_attention_layernorm"
    attention_norm_after: str | None = None
    mlp_norm_after: str | None = None
    embedding: str = "model.embed_tokens.weight"
    final_norm: str = "model.norm.weight"
    head: str = "lm_head.weight"

    @property
    def sublayers(self) -> dict[str, tuple[str, ...]]:
        """The attributes of a decoder layer that hold the module and its norms, of attention and MLP."""
        norms = {
            self.o: (self.attention_norm, self.attention_norm_after),
            self.down: (self.mlp_norm, self.mlp_norm_after),
        }
        return {
            kind: (module.partition(".")[0], *(norm for norm in norms[module] if norm))
            for kind, module in (("attention", self.o), ("mlp", self.down))
        }

    def tensors(self, shape: ModelShape) -> dict[str, Dimensions]:
        """Every tensor of a model of that shape, by its name in the checkpoint."""
        hidden, vocabulary = {"hidden_size": shape.hidden}, {"vocab_size": shape.vocabulary}
        tensors: dict[str, Dimensions] = {self.embedding: vocabulary | hidden, self.final_norm: hidden}
        tensors |= {} if shape.tied_embeddings else {self.head: vocabulary | hidden}
        of_width = {width: self._tensors_of_layer(shape, width) for width in set(shape.widths)}
        for index, width in enumerate(shape.widths):
            prefix = self.layer.format(layer=index)
            tensors |= {prefix + name: size for name, size in of_width[width].items()}
        return tensors

    def _tensors_of_layer(self, shape: ModelShape, width: LayerWidth) -> dict[str, Dimensions]:
        """The tensors of a layer of that width, by their names in it."""
        hidden, head = {"hidden_size": shape.hidden}, {"head_dim": shape.head_dim}
        query = {"num_attention_heads * head_dim": width.kv_groups * width.heads_per_group * shape.head_dim}
        key = {"num_key_value_heads * head_dim": width.kv_groups * shape.head_dim}
        channels = {"intermediate_size": width.channels}
        rows = {self.q: query, self.k: key, self.v: key, self.o: hidden}
        rows |= {self.gate: channels, self.up: channels, self.down: hidden}
        columns = dict.fromkeys(rows, hidden) | {self.o: query, self.down: channels}
        norms = {norm: hidden for _, *norms in self.sublayers.values() for norm in norms}
        whole = shape.qk_norm_whole
        norms |= (
            {self.q_norm: query if whole else head, self.k_norm: key if whole else head}
            if shape.qk_norm
            else {}
        )
        biased: tuple[str, ...] = (self.q, self.k, self.v) if shape.qkv_bias else ()
        biased += (self.o,) if shape.o_bias else ()
        biased += (self.gate, self.up, self.down) if shape.mlp_bias else ()
        for one, parts in self.fused.items():
            size = [pair for part in parts for pair in rows.pop(part).items()]
            rows[one] = {" + ".join(name for name, _ in size): sum(count for _, count in size)}
            columns[one] = columns[parts[0]]
        layer: dict[str, Dimensions] = {f"{name}.weight": rows[name] | columns[name] for name in rows}
        layer |= {f"{name}.weight": size for name, size in norms.items()}
        layer |= {f"{name}.bias": rows[name] for name in biased}
        gone = tuple(
            f"{part}." for kind in Kind if not width.keeps(kind) for part in self.sublayers[kind.value]
        )
        return {name: size for name, size in layer.items() if not name.startswith(gone)}
