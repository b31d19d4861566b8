"""Adapters: where each model family keeps its weights, and what its configuration means.

The one place that knows a family. To add one, write a `Family` and enter it in `FAMILIES`:
the names of the seven projections and of the norms, and a function from its configuration to
a `ModelShape`. Standard library only, so that `sample` can read a shape without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stages.architecture import ModelShape
from stages.files import InputError

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """Names relative to a decoder layer unless they start with ``model.``."""

    model_type: str
    shape: Callable[[Config], ModelShape]
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
    attention_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    embedding: str = "model.embed_tokens.weight"
    final_norm: str = "model.norm.weight"
    head: str = "lm_head.weight"


def _shape(config: Config, **flags: bool) -> ModelShape:
    heads = int(config["num_attention_heads"])
    kv_groups = int(config.get("num_key_value_heads") or heads)
    return ModelShape(
        family=str(config["model_type"]),
        layers=int(config["num_hidden_layers"]),
        hidden=int(config["hidden_size"]),
        kv_groups=kv_groups,
        heads_per_group=heads // kv_groups,
        head_dim=int(config.get("head_dim") or int(config["hidden_size"]) // heads),
        channels=int(config["intermediate_size"]),
        vocabulary=int(config["vocab_size"]),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        **flags,
    )


def _llama(config: Config) -> ModelShape:
    bias = bool(config.get("attention_bias", False))
    return _shape(config, qkv_bias=bias, o_bias=bias, mlp_bias=bool(config.get("mlp_bias", False)))


def _qwen3(config: Config) -> ModelShape:
    bias = bool(config.get("attention_bias", False))
    return _shape(config, qkv_bias=bias, o_bias=bias, qk_norm=True)


FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (
        Family("llama", shape=_llama),
        Family("mistral", shape=lambda config: _shape(config)),
        Family("qwen2", shape=lambda config: _shape(config, qkv_bias=True)),
        Family("qwen3", shape=_qwen3),
    )
}


def family_of(config: Config, source: str) -> Family:
    """The adapter for a model's configuration.

    Raises:
        InputError: no adapter knows the model type; the message lists those that exist.
    """
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise InputError(
            f"model.source {source!r} is of the family {model_type!r}; "
            f"supported families: {', '.join(FAMILIES)}. stages/families.py says how to add one"
        )
    return FAMILIES[str(model_type)]
