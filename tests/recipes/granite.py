"""A toy family: Granite, which scales its embeddings, sublayers, attention and logits."""

from stages.families import FAMILIES, BlockRecipe, Family, usual_recipe
from stages.families.recipe import Config


def _recipe(config: Config) -> BlockRecipe:
    bias = bool(config.get("attention_bias", False))
    return usual_recipe(
        config,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
        embedding_scale=float(config.get("embedding_multiplier", 1)),
        residual_scale=float(config.get("residual_multiplier", 1)),
        attention_scale=float(config.get("attention_multiplier", 1)),
        logits_scale=1 / float(config.get("logits_scaling", 1)),
    )


FAMILIES.add("granite", Family("granite", _recipe))
