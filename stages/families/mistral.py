"""Mistral: Llama with an attention window in every layer."""

from __future__ import annotations

from stages.families.family import Family
from stages.families.recipe import BlockRecipe, Config, usual_recipe


def _recipe(config: Config) -> BlockRecipe:
    windows = (config.get("sliding_window", 4096),) * int(config["num_hidden_layers"])
    return usual_recipe(config, windows=windows)


MISTRAL = Family("mistral", _recipe)
