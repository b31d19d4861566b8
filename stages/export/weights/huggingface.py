"""Write a pruned model as a Hugging Face folder.

Equal widths in every layer that is left make a plain model of its family: layers that lost everything are
left out, and the others counted anew. Otherwise the folder carries
`modeling_prunecast.py` and loads with
``AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassClassValidationError
from safetensors import safe_open

from stages.architecture import Architecture, ModelShape
from stages.export.weights.own_code import keep_own_code_alone
from stages.families import FAMILIES, Family
from stages.families.pruned import pruned_model, settings_of, width_settings
from stages.files import write_text
from stages.progress import without_bars


def write_folder(
    folder: Path,
    state: Mapping[str, torch.Tensor],
    base_config: transformers.PretrainedConfig,
    architecture: Architecture,
    shape: ModelShape,
    tokenizer: transformers.PreTrainedTokenizerBase | None,
    generation_config: transformers.GenerationConfig | None,
    dtype: torch.dtype,
    max_shard_size: str = "5GB",
) -> None:
    """Write the model, its tokenizer and what is needed to load it into a new folder.

    Not in one step: write into `staging.replacing`, and the folder appears whole under its name.

    Args:
        folder: made here; nothing is there yet.
        state: the pruned tensors under the family's Hugging Face names: original layer numbers,
            nothing of a dropped sublayer, no head where it is tied to the embedding.
        base_config: the dense model's configuration.
        architecture: the widths that `state` has.
        shape: the dense model's shape.
        dtype: floating-point tensors are stored in it.
        max_shard_size: weights beyond it are divided into several files with an index.

    Raises:
        FileExistsError: something is at `folder`.
        ValueError: the architecture does not fit the shape, transformers refuses its configuration,
            `state` lacks a tensor, has one too many or one of another shape, or the written file
            does not hold as many parameters as the architecture keeps.
    """
    architecture.check(shape)
    model = _build(base_config, architecture, shape)
    if model.config.num_hidden_layers < shape.layers:
        state = _renumbered(state, architecture, FAMILIES[shape.family])
    _check_state(model, state, _tied_names(model, shape))
    model.load_state_dict(
        {name: _own(tensor, dtype) for name, tensor in state.items()}, strict=False, assign=True
    )
    model.tie_weights()
    if generation_config is not None:
        model.generation_config = generation_config

    folder.mkdir(parents=True)
    with without_bars():  # also copies modeling_prunecast.py, where the model needs it
        model.save_pretrained(folder, max_shard_size=max_shard_size)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    keep_own_code_alone(folder)
    _say_rotary_to_transformers_4(folder / "config.json")
    _check_written(folder, architecture, shape)


def _build(base_config: Any, architecture: Architecture, shape: ModelShape) -> Any:
    """The model to export, on the meta device: shapes without storage."""
    settings = settings_of(base_config, shape)
    family = FAMILIES[shape.family]
    plain = _plain_config(family, settings, architecture)
    if plain is not None:
        with torch.device("meta"):
            return transformers.AutoModelForCausalLM.from_config(plain)  # type: ignore[no-untyped-call]
    try:
        return pruned_model(family, settings, architecture.widths)
    except StrictDataclassClassValidationError as error:
        raise ValueError(f"architecture {architecture.id} cannot be exported: {error.__cause__}") from error


def _plain_config(
    family: Family, settings: Mapping[str, Any], architecture: Architecture
) -> transformers.PretrainedConfig | None:
    """The family's own configuration, or None if it cannot say what the architecture keeps."""
    kept = architecture.kept_layers()
    widths = {architecture.widths[layer] for layer in kept}
    if len(widths) != 1:
        return None
    (width,) = widths
    if not (width.has_attention and width.has_mlp):
        return None
    changes = {**width_settings(width), "num_hidden_layers": len(kept)}
    for name in family.by_layer:
        if settings.get(name):
            changes[name] = [settings[name][layer] for layer in kept]
    try:
        config = transformers.AutoConfig.for_model(family.model_type, **{**settings, **changes})
    except StrictDataclassClassValidationError:  # Llama wants the heads to divide the hidden size
        return None
    return config


def _renumbered(
    state: Mapping[str, torch.Tensor], architecture: Architecture, family: Family
) -> dict[str, torch.Tensor]:
    """The tensors under the numbers that their layers have once empty layers are left out."""
    numbers = {old: new for new, old in enumerate(architecture.kept_layers())}
    pattern = re.compile(re.escape(family.layer).replace(r"\{layer\}", r"(\d+)"))

    def renamed(name: str) -> str:
        found = pattern.match(name)
        if found is None:
            return name
        if int(found[1]) not in numbers:  # a name that no model has: it is found surplus
            return f"{name} of an empty layer"
        return family.layer.format(layer=numbers[int(found[1])]) + name[found.end() :]

    return {renamed(name): tensor for name, tensor in state.items()}


def _tied_names(model: Any, shape: ModelShape) -> set[str]:
    return {FAMILIES[shape.family].head} if model.config.tie_word_embeddings else set()


def _check_state(model: Any, state: Mapping[str, torch.Tensor], tied: set[str]) -> None:
    """Raise ValueError unless `state` has exactly the model's tensors, in their shapes."""
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items() if name not in tied}
    if missing := sorted(expected.keys() - state.keys()):
        raise ValueError(f"the pruned state lacks {missing[0]!r} (of {len(missing)} missing tensors)")
    if surplus := sorted(state.keys() - expected.keys()):
        raise ValueError(
            f"the pruned state has {surplus[0]!r}, which its architecture does not have "
            f"(of {len(surplus)} surplus tensors)"
        )
    for name, wanted in expected.items():
        if (found := tuple(state[name].shape)) != wanted:
            raise ValueError(f"{name} has the shape {found}; its architecture says {wanted}")


def _own(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor on the CPU in `dtype`, with a storage of its own: safetensors refuses to share."""
    result = tensor.detach().to("cpu", dtype).contiguous()
    return result.clone() if result.untyped_storage().nbytes() > result.nbytes else result


def _say_rotary_to_transformers_4(path: Path) -> None:
    """Write the rotary embedding in the words of transformers 4 too, where all layers have one.

    It loads a plain folder, does not know ``rope_parameters``, and would take another base without a word.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    given = config.get("rope_parameters") or {}
    rotary = dict(given.get("full_attention") or given)
    if "auto_map" in config or "rope_theta" not in rotary:
        return
    if local := given.get("sliding_attention"):  # Gemma's word; OLMo 3 has one base there for both kinds
        config["rope_local_base_freq"] = local["rope_theta"]
    config["rope_theta"] = rotary.pop("rope_theta")
    if rotary.get("rope_type", "default") != "default":
        config["rope_scaling"] = rotary
    write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _check_written(folder: Path, architecture: Architecture, shape: ModelShape) -> None:
    """Raise ValueError unless the files hold as many parameters as the architecture keeps."""
    found = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    expected = architecture.total_parameters(shape)
    if found != expected:
        raise ValueError(
            f"the export of architecture {architecture.id} holds {found} parameters; "
            f"expected {expected}, {shape.outside_parameters} of them outside the decoder layers"
        )
