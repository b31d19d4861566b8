"""Phi-3 and Phi-4: Llama whose queries, keys and values, and gate and up, are one projection each."""

from __future__ import annotations

from stages.families.configuration import Config, Key, Positive, Size
from stages.families.family import Family
from stages.families.recipe import BlockRecipe, UnsupportedPieceError, usual_recipe, usual_rotary


def _recipe(config: Config) -> BlockRecipe:
    layers = int(config["num_hidden_layers"])
    rotary = dict(usual_rotary(config))
    if (kind := rotary["rope_type"]) != "default":  # transformers takes any other for longrope
        raise UnsupportedPieceError(f"has the rope type {kind!r}; supported in this family: default")
    rotary.pop("partial_rotary_factor", None)  # 1, which transformers writes out here
    return usual_recipe(config, rotary=(rotary,) * layers, windows=(config["sliding_window"],) * layers)


PHI3 = Family(
    "phi3",
    _recipe,
    keys={
        "max_position_embeddings": Key(Size, 4096),
        "original_max_position_embeddings": Key(Size, 4096),
        "rms_norm_eps": Key(Positive, 1e-5),
    },
    fused={
        "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    },
)
