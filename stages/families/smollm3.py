"""SmolLM3: Llama, in some of whose layers attention sees no positions."""

from __future__ import annotations

from stages.families.configuration import Config, Key, Positive, Size
from stages.families.family import Family
from stages.families.recipe import BlockRecipe, usual_recipe, usual_rotary, windows_by_kind


def _recipe(config: Config) -> BlockRecipe:
    layers, every = range(config["num_hidden_layers"]), config["no_rope_layer_interval"]
    turned = config["no_rope_layers"] or [(layer + 1) % every for layer in layers]  # 0: has none
    window = config["sliding_window"] if config["use_sliding_window"] else None
    usual = ["full_attention" if turns else "sliding_attention" for turns in turned]
    kinds = config["layer_types"] or usual
    return usual_recipe(
        config,
        rotary=tuple(usual_rotary(config) if turns else None for turns in turned),
        windows=windows_by_kind(window, kinds),
        qkv_bias=config["attention_bias"],
        o_bias=config["attention_bias"],
        mlp_bias=config["mlp_bias"],
    )


SMOLLM3 = Family(
    "smollm3",
    _recipe,
    by_layer=("layer_types", "no_rope_layers"),
    keys={
        "num_key_value_heads": Key(Size | None, 4),
        "head_dim": Key(Size, None),
        "max_position_embeddings": Key(Size, 32768),
        "tie_word_embeddings": Key(bool, True),
        "rope_theta": Key(Positive, 2000000.0),
        "no_rope_layers": Key(list[int] | None, None),
        "no_rope_layer_interval": Key(Size, 4),
    },
)
