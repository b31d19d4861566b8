"""Model families: where each keeps its weights, what its configuration means, and what a layer of it is.

One file a family, entered in `FAMILIES`. An extension enters its own: ``FAMILIES.add("mine", MINE)``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stages.architecture import ModelShape
from stages.families.configuration import USUAL_KEYS, Config, ConfigurationError, completed
from stages.families.family import Family
from stages.families.recipe import BlockRecipe, UnsupportedPieceError, refuse_experts, usual_recipe
from stages.families.unlike import with_widths
from stages.files import InputError
from stages.registry import Registry

__all__ = [
    "FAMILIES",
    "BlockRecipe",
    "Config",
    "Description",
    "Family",
    "describe",
    "family_of",
    "usual_recipe",
]

FAMILIES = Registry(
    "families",
    {
        "gemma3_text": "stages.families.gemma3:GEMMA3",
        "granite": "stages.families.granite:GRANITE",
        "llama": "stages.families.llama:LLAMA",
        "mistral": "stages.families.mistral:MISTRAL",
        "olmo2": "stages.families.olmo:OLMO2",
        "olmo3": "stages.families.olmo:OLMO3",
        "phi3": "stages.families.phi3:PHI3",
        "qwen2": "stages.families.qwen2:QWEN2",
        "qwen3": "stages.families.qwen3:QWEN3",
        "smollm3": "stages.families.smollm3:SMOLLM3",
    },
)
"""Each family by its model type."""
_WIDTHS_BY_LAYER = ("per_layer_config", "block_configs")
OWN_TYPE = "prunecast_"
"""What the model types of Prunecast's exports begin with, where layers differ in width."""


@dataclass(frozen=True)
class Description:
    """A model as its configuration describes it."""

    family: Family
    shape: ModelShape
    recipe: BlockRecipe
    context_tokens: int
    """The longest sequence that the model was made for and is run on."""


def describe(config: Config, source: str) -> Description:
    """What a configuration under the names of Hugging Face's config.json says of a model.

    Raises:
        InputError: the family is unknown, the configuration asks for a piece that no recipe can say, or it
            lacks a size or holds a bad one.
    """
    family = family_of(config, source)
    try:
        given = completed({**config, "model_type": family.model_type}, {**USUAL_KEYS, **family.keys})
        recipe = family.recipe(given)
        shape = family.shape(given, recipe)
        if is_pruned(config):
            shape = with_widths(shape, given)
        context = int(given["max_position_embeddings"] or sys.maxsize)
        return Description(family, shape, recipe, context)
    except UnsupportedPieceError as error:
        raise InputError(
            f"model.source {source!r}, of the family {family.model_type!r}, {error}. "
            "stages/families/recipe.py says what a family may be made of"
        ) from error
    except ConfigurationError as error:
        raise InputError(
            f"model.source {source!r} has a bad configuration (config.json): {error}. Compare it with the "
            "model's own where it comes from"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"model.source {source!r} has a configuration that lacks a size or holds a bad one "
            f"({error!r}); compare it with the model's own config.json"
        ) from error


def family_of(config: Config, source: str) -> Family:
    """The family of a model's configuration.

    Raises:
        InputError: it is unknown, and the message lists those that are supported, and says so if the model is
            a mixture of experts or reads more than text; or its layers are of unlike widths, and it is no
            export of Prunecast's.
    """
    model_type = config.get("base_model_type") if is_pruned(config) else config.get("model_type")
    if is_pruned(config) and model_type is None:
        raise InputError(
            f"model.source {source!r} has a configuration of the type {config['model_type']!r} without "
            "base_model_type, which an export has; take its config.json from where it was exported"
        )
    if not is_pruned(config) and (told := [name for name in _WIDTHS_BY_LAYER if name in config]):
        raise InputError(
            f"model.source {source!r} has layers of unlike widths ({told[0]} in its configuration) and is no "
            f"export of Prunecast's (a model type that begins with {OWN_TYPE!r}): how other programs mean "
            "that is not known. Give the model that it was made from"
        )
    if model_type in FAMILIES.names:
        found: Family = FAMILIES[str(model_type)]
        return found
    try:
        refuse_experts(config)
        reason = ""
    except UnsupportedPieceError as error:
        reason = f", and {error}"
    if isinstance(text := config.get("text_config"), Mapping):
        reason = (
            f", which reads more than text; its model of text (text_config, of the family "
            f"{text.get('model_type')!r}) can be pruned as a folder of its own"
        )
    raise InputError(
        f"model.source {source!r} is of the family {model_type!r}{reason}; "
        f"supported families: {', '.join(FAMILIES.names)}. stages/families/family.py says how to add one"
    )


def is_pruned(config: Config) -> bool:
    """Whether a configuration is that of an export of Prunecast's whose layers differ in width."""
    return str(config.get("model_type")).startswith(OWN_TYPE)


def register_pruned(config: Config, source: str) -> None:
    """Let the Auto classes of this process load the model of a configuration, if it is such an export.

    The code in its folder is then not run.

    Raises:
        InputError: its family is unknown.
    """
    from stages.families import modeling_prunecast

    if is_pruned(config):
        modeling_prunecast.register(family_of(config, source).model_type)


def register(folder: Path | None = None) -> None:
    """Let the Auto classes of this process load exported folders without remote code.

    Those of every family, and `folder`, whose family may be that of an extension which is not loaded here.
    """
    from stages.families import modeling_prunecast

    model_types = dict.fromkeys(FAMILIES.names)
    if folder is not None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_types |= {config["base_model_type"]: None} if "base_model_type" in config else {}
    for model_type in model_types:
        modeling_prunecast.register(model_type)
