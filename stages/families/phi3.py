"""Phi-3 and Phi-4: Llama whose queries, keys and values, and gate and up, are one projection each.

Those of 128k tokens have longrope, and Phi-4-mini turns a part of each head.
"""

from __future__ import annotations

from stages.families.configuration import Config, Key, Positive, Size
from stages.families.family import Family
from stages.families.recipe import BlockRecipe, UnsupportedPieceError, usual_recipe, usual_rotary


def _recipe(config: Config) -> BlockRecipe:
    layers = int(config["num_hidden_layers"])
    rotary = dict(usual_rotary(_renamed(config), partial=True))
    if (kind := rotary["rope_type"]) not in ("default", "longrope"):
        raise UnsupportedPieceError(
            f"has the rope type {kind!r}; supported in this family: default, longrope"
        )
    if rotary.get("partial_rotary_factor") == 1:  # which transformers writes out here
        del rotary["partial_rotary_factor"]
    return usual_recipe(config, rotary=(rotary,) * layers, windows=(config["sliding_window"],) * layers)


def _renamed(config: Config) -> Config:
    """The configuration, in which longrope has its name; the first ones called it otherwise."""
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    given = config.get(name) or {}
    if given.get("rope_type", given.get("type")) not in ("su", "yarn"):
        return config
    return {**config, name: {**given, "rope_type": "longrope"}}


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
