"""A toy family: Granite, which scales its embeddings, sublayers, attention and logits."""

from stages.families import FAMILIES, BlockRecipe, Family, usual_recipe
from stages.families.configuration import Config, Key, Positive, Size

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


_KEYS = dict.fromkeys(_SCALES, Key(Positive, 1.0)) | {"max_position_embeddings": Key(Size, 2048)}
FAMILIES.add("granite", Family("granite", _recipe, keys=_KEYS))
