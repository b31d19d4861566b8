"""A toy family: SmolLM3, in some of whose layers attention sees no positions."""

from stages.families import FAMILIES, BlockRecipe, Family, usual_recipe
from stages.families.recipe import Config, usual_rotary


def _recipe(config: Config) -> BlockRecipe:
    bias = bool(config.get("attention_bias", False))
    layers = range(int(config["num_hidden_layers"]))
    every = int(config.get("no_rope_layer_interval", 4))
    turned = config.get("no_rope_layers") or [(layer + 1) % every for layer in layers]  # 0: has none
    window = config.get("sliding_window") if config.get("use_sliding_window") else None
    kinds = config.get("layer_types") or ["full_attention" for _ in layers]
    return usual_recipe(
        config,
        rotary=tuple(usual_rotary(config) if turns else None for turns in turned),
        windows=tuple(window if kind == "sliding_attention" else None for kind in kinds),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
    )


SMOLLM3 = Family("smollm3", _recipe, by_layer=("layer_types", "no_rope_layers"))
FAMILIES.add("smollm3", SMOLLM3)
