"""The widths of an exported folder's layers, as its configuration says them: the shape of a pruned model.

The schema is transformers' own, ``per_layer_config``; `modeling_prunecast` builds what it says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from stages.architecture import LayerWidth, ModelShape
from stages.families.configuration import Config, ConfigurationError, Key, Size, completed

_SKIPPED = Key(list[Annotated[str, Field(pattern="^(attention|mlp)$")]], [])


def with_widths(shape: ModelShape, config: Config) -> ModelShape:
    """The shape with the layers' widths that ``per_layer_config`` gives; the rest of it stays.

    Raises:
        ConfigurationError: a layer is named that is not there, a width is no size or the heads cannot be
            shared out, or no layer has an attention, or none an MLP.
    """
    given = config.get("per_layer_config")
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"per_layer_config is a {type(given).__name__}; expected widths by layer")
    layers = {int(name) if name.isdecimal() else name: name for name in map(str, given)}  # "03" is 3
    if odd := [name for layer, name in layers.items() if layer not in range(shape.layers)]:
        raise ConfigurationError(
            f"per_layer_config holds layer {odd[0]}; expected an entry for some of the {shape.layers} layers"
        )
    widths = tuple(
        _width(shape, given[layers[i]] if i in layers else {}, f"per_layer_config.{layers.get(i, i)}.")
        for i in range(shape.layers)
    )
    most = LayerWidth(*map(max, zip(*widths, strict=True)))
    for size, what in ((most.kv_groups, "an attention"), (most.channels, "an MLP")):
        if not size:
            raise ConfigurationError(f"per_layer_config leaves no layer {what}; expected one at least")
    return replace(shape, **most._asdict(), unlike=widths)


def _width(shape: ModelShape, layer: Any, inside: str) -> LayerWidth:
    """What one layer has; what its entry leaves out is as in the model that was pruned."""
    keys = {
        "num_attention_heads": Key(Size, shape.kv_groups * shape.heads_per_group),
        "num_key_value_heads": Key(Size, shape.kv_groups),
        "intermediate_size": Key(Size, shape.channels),
        "skip": _SKIPPED,
    }
    if not isinstance(layer, Mapping):
        raise ConfigurationError(f"{inside[:-1]} is a {type(layer).__name__}; expected widths by name")
    found = completed(layer, keys, inside)
    heads, groups = found["num_attention_heads"], found["num_key_value_heads"]
    if heads % groups:
        raise ConfigurationError(
            f"{inside}num_attention_heads is {heads} and num_key_value_heads {groups}; expected a whole "
            "number of query heads for each key-value head"
        )
    groups, heads = (0, 0) if "attention" in found["skip"] else (groups, heads // groups)
    return LayerWidth(groups, heads, 0 if "mlp" in found["skip"] else found["intermediate_size"])
