"""Llama, and what shares its architecture: SmolLM, TinyLlama, Yi, …"""

from __future__ import annotations

from stages.families.configuration import Config, Key, Size
from stages.families.family import Family
from stages.families.recipe import BlockRecipe, usual_recipe


def _recipe(config: Config) -> BlockRecipe:
    bias = bool(config.get("attention_bias", False))
    return usual_recipe(config, qkv_bias=bias, o_bias=bias, mlp_bias=bool(config.get("mlp_bias", False)))


LLAMA = Family("llama", _recipe, keys={"max_position_embeddings": Key(Size, 2048)})
