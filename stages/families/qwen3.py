"""Qwen 3: norms on queries and keys, and an attention window in the later layers."""

from __future__ import annotations

from stages.families.configuration import Config, Key, Size
from stages.families.family import Family
from stages.families.recipe import BlockRecipe, sliding_by_layer, usual_recipe


def _recipe(config: Config) -> BlockRecipe:
    bias = bool(config.get("attention_bias", False))
    windows = sliding_by_layer(config)
    return usual_recipe(config, windows=windows, qkv_bias=bias, o_bias=bias, qk_norm=True)


QWEN3 = Family(
    "qwen3",
    _recipe,
    keys={
        "num_key_value_heads": Key(Size | None, 32),
        "head_dim": Key(Size, 128),
        "max_position_embeddings": Key(Size, 32768),
        "sliding_window": Key(Size | None, 4096),
    },
)
