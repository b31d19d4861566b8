"""Granite: Llama with scales of its embeddings, sublayers, attention and logits."""

from __future__ import annotations

from stages.families.configuration import Config, Key, Positive, Size
from stages.families.family import Family
from stages.families.recipe import BlockRecipe, usual_recipe

_SCALES = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")


def _recipe(config: Config) -> BlockRecipe:
    return usual_recipe(
        config,
        qkv_bias=config["attention_bias"],
        o_bias=config["attention_bias"],
        mlp_bias=config["mlp_bias"],
        embedding_scale=float(config["embedding_multiplier"]),
        residual_scale=float(config["residual_multiplier"]),
        attention_scale=float(config["attention_multiplier"]),
        logits_scale=1 / float(config["logits_scaling"]),
    )


GRANITE = Family(
    "granite",
    _recipe,
    keys={**dict.fromkeys(_SCALES, Key(Positive, 1.0)), "max_position_embeddings": Key(Size, 2048)},
)
