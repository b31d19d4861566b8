"""Qwen 3: norms on queries and keys, and an attention window in the later layers."""

from __future__ import annotations

from stages.families.family import Family
from stages.families.recipe import BlockRecipe, Config, sliding_by_layer, usual_recipe


def _recipe(config: Config) -> BlockRecipe:
    bias = bool(config.get("attention_bias", False))
    windows = sliding_by_layer(config)
    return usual_recipe(config, windows=windows, qkv_bias=bias, o_bias=bias, qk_norm=True)


QWEN3 = Family("qwen3", _recipe)
