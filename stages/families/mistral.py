"""Mistral: Llama with an attention window in every layer."""

from __future__ import annotations

from stages.families.configuration import Config, Key, Size
from stages.families.family import Family
from stages.families.recipe import BlockRecipe, usual_recipe


def _recipe(config: Config) -> BlockRecipe:
    return usual_recipe(config, windows=(config["sliding_window"],) * int(config["num_hidden_layers"]))


MISTRAL = Family(
    "mistral",
    _recipe,
    keys={
        "num_key_value_heads": Key(Size, 8),
        "max_position_embeddings": Key(Size, 131072),
        "sliding_window": Key(Size | None, 4096),
    },
)
