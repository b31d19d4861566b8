"""Gemma 3, the model of text: norms before and behind each sublayer, a window and a rotary base by layer."""

from __future__ import annotations

import math
from typing import Any

from stages.architecture import ModelShape
from stages.families.configuration import Config, Key, Positive, Size
from stages.families.family import Family, usual_settings
from stages.families.recipe import (
    BlockRecipe,
    UnsupportedPieceError,
    kinds_of_attention,
    rotary_by_kind,
    usual_recipe,
    windows_by_kind,
)


def _recipe(config: Config) -> BlockRecipe:
    for piece in ("use_bidirectional_attention", "final_logit_softcapping", "attn_logit_softcapping"):
        if config[piece]:
            raise UnsupportedPieceError(f"has {piece} {config[piece]}; supported in this family: none")
    every = config["sliding_window_pattern"]
    layers = range(1, config["num_hidden_layers"] + 1)
    usual = ["sliding_attention" if layer % every else "full_attention" for layer in layers]
    kinds = kinds_of_attention(config, usual)
    bases = {"full_attention": config["rope_theta"], "sliding_attention": config["rope_local_base_freq"]}
    return usual_recipe(
        config,
        rotary=rotary_by_kind(config, kinds, **bases),
        windows=windows_by_kind(config["sliding_window"], kinds),
        activation=config["hidden_activation"],
        norm_offset=1.0,
        norm_in_float32=True,
        norm_after=True,
        qkv_bias=config["attention_bias"],
        o_bias=config["attention_bias"],
        qk_norm=True,
        embedding_scale=math.sqrt(config["hidden_size"]),
        embedding_scale_rounded=True,
        attention_scale=config["query_pre_attn_scalar"] ** -0.5,
    )


def _settings(shape: ModelShape) -> dict[str, Any]:
    return usual_settings(shape) | {"sliding_window": 1024}  # of the larger ones; no shape tells it


GEMMA3 = Family(
    "gemma3_text",
    _recipe,
    settings=_settings,
    keys={
        "num_key_value_heads": Key(Size, 4),
        "head_dim": Key(Size, 256),
        "max_position_embeddings": Key(Size, 131072),
        "tie_word_embeddings": Key(bool, True),
        "hidden_activation": Key(str, "gelu_pytorch_tanh"),
        "rope_theta": Key(Positive | None, 1_000_000.0),
        "rope_local_base_freq": Key(Positive, 10_000.0),
        "query_pre_attn_scalar": Key(Positive, 256),
        "sliding_window": Key(Size | None, 4096),
        "sliding_window_pattern": Key(Size, 6),
        "use_bidirectional_attention": Key(bool | None, False),
        "final_logit_softcapping": Key(Positive | None, None),
        "attn_logit_softcapping": Key(Positive | None, None),
    },
    attention_norm_after="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_norm_after="post_feedforward_layernorm",
)
