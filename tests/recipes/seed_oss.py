"""A toy family: Seed-OSS, a Llama whose queries, keys and values alone have biases."""

from stages.families import FAMILIES, BlockRecipe, Family, usual_recipe
from stages.families.configuration import Config, Key, Size


def _recipe(config: Config) -> BlockRecipe:
    return usual_recipe(
        config,
        qkv_bias=config["attention_bias"],
        o_bias=config["attention_out_bias"],
        mlp_bias=config["mlp_bias"],
    )


_KEYS = {
    "num_key_value_heads": Key(Size | None, 8),
    "head_dim": Key(Size | None, 128),
    "max_position_embeddings": Key(Size, 524288),
    "attention_bias": Key(bool, True),
    "attention_out_bias": Key(bool, False),
}
FAMILIES.add("seed_oss", Family("seed_oss", _recipe, keys=_KEYS))
