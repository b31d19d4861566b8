"""Pruned models in transformers' words: the configuration of one, and the model without its weights.

What latency is timed on, what is exported, and whatever trains a pruned model is built here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from stages.architecture import LayerWidth, ModelShape
from stages.families import describe
from stages.families.family import Family
from stages.families.modeling_prunecast import SUBLAYERS, pruned_classes

_NOT_CARRIED_OVER = (  # of the source, not of what is made of it
    "architectures",
    "allow_global_per_layer_attribute_access",
    "auto_map",
    "base_model_type",
    "dtype",
    "model_type",
    "per_layer_config",
    "quantization_config",
    "sublayers",
    "transformers_version",
)


def settings_of(config: Any, shape: ModelShape) -> dict[str, Any]:
    """The settings of a dense model's configuration that its pruned models share."""
    settings = {k: v for k, v in config.to_diff_dict().items() if k not in _NOT_CARRIED_OVER}
    if (scale := describe(config.to_dict(), shape.family).recipe.logits_scale) != 1:
        settings["logit_scale"] = scale  # vLLM knows no other name for it
    return settings | {"head_dim": shape.head_dim}  # never to be derived from a pruned number of heads


def width_settings(width: LayerWidth) -> dict[str, Any]:
    """The widths of a layer that keeps both sublayers, or of the one that it keeps.

    Without attention it has one head in name: what servers set memory aside for.
    """
    settings: dict[str, Any] = {"num_attention_heads": 1, "num_key_value_heads": 1}
    if width.has_attention:
        settings["num_attention_heads"] = width.kv_groups * width.heads_per_group
        settings["num_key_value_heads"] = width.kv_groups
    if width.has_mlp:
        settings["intermediate_size"] = width.channels
    return settings


def pruned_config(family: Family, settings: Mapping[str, Any], widths: Sequence[LayerWidth]) -> Any:
    """The configuration of a model with these layers; `settings` are the dense model's.

    Raises:
        StrictDataclassClassValidationError: the family's own configuration refuses them.
    """
    layers = {}
    for index, width in enumerate(widths):
        present = {"attention": width.has_attention, "mlp": width.has_mlp}
        skip = {} if all(present.values()) else {"skip": [n for n, there in present.items() if not there]}
        layers[str(index)] = {**width_settings(width), **skip}
    classes = pruned_classes(family.model_type)
    own_names = {} if family.sublayers == SUBLAYERS else {"sublayers": family.sublayers}
    return classes.config(**settings, **own_names, per_layer_config=layers, auto_map=classes.auto_map)


def pruned_model(family: Family, settings: Mapping[str, Any], widths: Sequence[LayerWidth]) -> Any:
    """The model of `pruned_config` on the meta device: shapes without storage."""
    with torch.device("meta"):
        return pruned_classes(family.model_type).causal_lm(pruned_config(family, settings, widths))
