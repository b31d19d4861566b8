"""OLMo 2 and 3: norms behind each sublayer and none before, and norms of queries and keys over all heads.

A head that is removed is missing from the mean that the others are divided by. What that does is measured
with every architecture; the repair and the damage curves, which go by dense activations, leave it out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from stages.architecture import ModelShape
from stages.families.configuration import Config, Key, Positive, Size
from stages.families.family import Family, usual_settings
from stages.families.recipe import (
    BlockRecipe,
    kinds_of_attention,
    rotary_by_kind,
    usual_recipe,
    windows_by_kind,
)

_BASE = 500_000.0


def _of_both(config: Config, **pieces: Any) -> BlockRecipe:
    return usual_recipe(
        config,
        norm_in_float32=True,
        norm_before=False,
        norm_after=True,
        qkv_bias=config["attention_bias"],
        o_bias=config["attention_bias"],
        qk_norm=True,
        qk_norm_whole=True,
        rotary_in_float32=True,
        **pieces,
    )


def _of_3(config: Config) -> BlockRecipe:
    layers = range(1, config["num_hidden_layers"] + 1)
    usual = ["sliding_attention" if layer % 4 else "full_attention" for layer in layers]
    kinds = kinds_of_attention(config, usual)
    bases = {"full_attention": config["rope_theta"], "sliding_attention": _BASE}
    return _of_both(
        config,
        rotary=rotary_by_kind(config, kinds, **bases),
        windows=windows_by_kind(config["sliding_window"], kinds),
    )


def _settings_of_3(shape: ModelShape) -> dict[str, Any]:
    return usual_settings(shape) | {"sliding_window": 4096}  # of all that were published; no shape tells it


_KEYS = {"max_position_embeddings": Key(Size, 2048), "rms_norm_eps": Key(Positive, 1e-5)}
OLMO2 = Family(
    "olmo2",
    _of_both,
    keys=_KEYS,
    attention_norm=None,
    mlp_norm=None,
    attention_norm_after="post_attention_layernorm",
    mlp_norm_after="post_feedforward_layernorm",
)
OLMO3 = replace(
    OLMO2,
    model_type="olmo3",
    recipe=_of_3,
    settings=_settings_of_3,
    keys={**_KEYS, "rope_theta": Key(Positive | None, _BASE), "sliding_window": Key(Size | None, 4096)},
)
