"""Qwen 2 and 2.5: biases on queries, keys and values, and an attention window in the later layers."""

from __future__ import annotations

from stages.families.configuration import Config, Key, Size
from stages.families.family import Family
from stages.families.recipe import BlockRecipe, sliding_by_layer, usual_recipe


def _recipe(config: Config) -> BlockRecipe:
    return usual_recipe(config, windows=sliding_by_layer(config), qkv_bias=True)


QWEN2 = Family(
    "qwen2",
    _recipe,
    keys={
        "num_key_value_heads": Key(Size | None, 32),
        "head_dim": Key(Size, None),
        "max_position_embeddings": Key(Size, 32768),
        "sliding_window": Key(Size | None, 4096),
    },
)
