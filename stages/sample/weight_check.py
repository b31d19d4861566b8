"""Whether the tensors of a model are those that its configuration announces: every name, shape and type."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from stages.config.params import ModelSection
from stages.families import Config, Description
from stages.files import InputError
from stages.sample.source import ModelSource, read_config
from stages.sample.weight_files import Stored, StoredTensor, note, stored_tensors

_OF_AN_ADAPTER = re.compile(r"^base_model\.model\.|\.base_layer\.|\.lora_[AB]\.|\.lora_magnitude_vector\b")
FLOATS = ("F64", "F32", "F16", "BF16")
PASSED_OVER = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached", "masked_bias")
"""How the names end of tensors that older releases of transformers wrote and newer ones compute."""


def check_source(source: ModelSource, model: ModelSection, described: Description) -> None:
    """Compare what can be known of the tensors of a located model with its configuration; no weight is read.

    Raises:
        InputError: the model is quantised, or its tensors are not those that its configuration announces.
    """
    config = {} if source.kind == "gguf" else read_config(source)
    refuse_quantised(config, {}, model.source)
    if (stored := stored_tensors(source, model)) is not None:
        check_tensors(config, described, stored, model.source)


def check_tensors(
    config: Config, described: Description, stored: Stored, source: str
) -> dict[str, StoredTensor]:
    """The tensors that a network of that description has, and the head of a tied one if it is in a file.

    Tensors that newer releases of transformers compute are passed over.

    Raises:
        InputError: the model is quantised; or a tensor is missing, of another shape, or left over.
    """
    passed = {name for name in stored if name.endswith(PASSED_OVER)}
    if passed:
        note(
            f"model.source {source!r}: {len(passed)} tensors are passed over, as {min(passed)}: computed anew"
        )
    kept = {name: tensor for name, tensor in stored.items() if name not in passed}
    refuse_quantised(config, kept, source)
    _refuse_unmerged(kept, source)
    family, shape = described.family, described.shape
    announced = family.tensors(shape)
    allowed = announced
    if shape.tied_embeddings:
        allowed = announced | {family.head: announced[family.embedding]}
    missing = [name for name in announced if name not in kept]
    unlike = [n for n, size in allowed.items() if n in kept and kept[n].shape != tuple(size.values())]
    over = [name for name in kept if name not in allowed]
    found = [
        f"lacks {len(missing)} tensors of the family {family.model_type}, the first is {missing[0]}"
        if missing
        else "",
        _unlike(kept, allowed, unlike),
        _left_over(over, family.layer, shape.layers),
    ]
    if any(found):
        raise InputError(
            f"model.source {source!r} {'; it '.join(part for part in found if part)}; "
            + (
                "the folder is incomplete, or config.json is of another model: fetch both from one place"
                if config
                else "the file is incomplete: fetch or convert it again"
            )
        )
    return kept


def _unlike(kept: Stored, allowed: Mapping[str, Mapping[str, int]], unlike: list[str]) -> str:
    if not unlike:
        return ""
    name = unlike[0]
    expected, found = allowed[name], " x ".join(map(str, kept[name].shape)) or "a scalar"
    sizes = " x ".join(map(str, expected.values()))
    return (
        f"has {len(unlike)} tensors of another shape than config.json says, the first is {name}: {found}; "
        f"expected {sizes} ({' x '.join(expected)})"
    )


def _left_over(over: list[str], layer: str, layers: int) -> str:
    if not over:
        return ""
    told = ""
    if over[0].startswith(layer.partition("{")[0]):
        told = f" (num_hidden_layers is {layers})"
    if over[0].endswith(".bias"):
        told = " (biases are announced by attention_bias and mlp_bias, or by the family)"
    return f"holds {len(over)} tensors that config.json does not announce, the first is {over[0]}{told}"


def _refuse_unmerged(stored: Stored, source: str) -> None:
    """Refuse a model that was saved with an adapter beside its weights: they alone are not the model."""
    if found := [name for name in stored if _OF_AN_ADAPTER.search(name)]:
        raise InputError(
            f"model.source {source!r} was saved with an adapter that is not merged: {len(found)} tensors are "
            f"named as peft names them, the first is {found[0]}. Load it with peft, merge it with "
            "`merge_and_unload()`, save that with `save_pretrained`, and give the new folder"
        )


def refuse_quantised(config: Config, stored: Stored, source: str) -> None:
    """Refuse a model whose weights are codes, told by its configuration or by the types of its tensors.

    Raises:
        InputError: it is quantised.
    """
    codes = [name for name, tensor in stored.items() if tensor.dtype not in FLOATS]
    signs = [
        f"{key} in config.json ({_method(config[key])})"
        for key in ("quantization_config", "compression_config", "quantization")
        if config.get(key) is not None
    ]
    signs += (
        [f"{len(codes)} tensors of no float type, the first is {codes[0]} ({stored[codes[0]].dtype})"]
        if codes
        else []
    )
    if signs:
        raise InputError(
            f"model.source {source!r} is quantised: {'; '.join(signs)}. Codes and scales are no weights that "
            "can be pruned: give the model that it was made from, and quantise what `export` writes of it"
        )


def _method(found: Any) -> str:
    method = found.get("quant_method") if isinstance(found, Mapping) else found
    return str(method or "no quant_method")[:60]
