"""To `sample`, without transformers, config.json means what it means to transformers; or it is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from stages.families import FAMILIES, describe
from stages.families.configuration import USUAL_KEYS
from stages.files import InputError
from tests import tiny

FAMILY_NAMES = tuple(FAMILIES.names)
WHOLE: dict[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 512,
    "intermediate_size": 48,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "attention_bias": True,
    "mlp_bias": True,
    "rope_theta": 5000.0,
    "rope_parameters": None,
    "rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32},
    "sliding_window": 9,
    "use_sliding_window": True,
    "max_window_layers": 1,
    "layer_types": ["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
}
REQUIRED = [name for name, key in USUAL_KEYS.items() if key.default is ... and name != "model_type"]
VALUES: dict[str, Any] = {
    "text": "64",
    "empty text": "",
    "negative": -4,
    "zero": 0,
    "null": None,
    "list": [4],
    "nested": {"a": {"b": 1}},
    "true": True,
    "false": False,
    "fraction": 2.5,
    "whole float": 4.0,
    "huge": 10**30,
    "nan": float("nan"),
    "infinite": float("inf"),
    "odd": 3,
    "other": 24,
}


def said(config: dict[str, Any]) -> dict[str, Any]:
    found = describe(config, "m")
    return {**asdict(found.shape), **asdict(found.recipe), "context": found.context_tokens}


def by_transformers(config: dict[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in config.items() if key != "model_type"}
    return said(CONFIG_MAPPING[config["model_type"]](**rest).to_dict())


def outcome(
    read: Callable[[dict[str, Any]], dict[str, Any]], config: dict[str, Any]
) -> tuple[dict[str, Any] | None, Exception | None]:
    try:
        return read(config), None
    except Exception as error:
        return None, error


def whole(family: str) -> dict[str, Any]:
    """A configuration with every key; Phi-3's rotary embedding is of the usual type or none of ours."""
    return {"model_type": family, **WHOLE, **({"rope_scaling": None} if family == "phi3" else {})}


def keys_of(family: str) -> list[str]:
    return [key for key in {**WHOLE, **FAMILIES[family].keys} if key != "model_type"]


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_what_is_left_out_means_what_transformers_means(family: str):
    """Each key alone, all that may be left out, and none."""
    optional = [key for key in WHOLE if key not in REQUIRED]
    for gone in ([], *([key] for key in keys_of(family)), optional):
        config = {key: v for key, v in whole(family).items() if key not in gone}
        if lacking := [key for key in gone if key in REQUIRED]:
            with pytest.raises(InputError, match=rf"config\.json.*{lacking[0]} is missing"):
                describe(config, "m")
        else:
            assert said(config) == by_transformers(config), gone


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_value_means_what_transformers_means_or_the_key_is_named(family: str, kind: str):
    """What transformers refuses may pass here, as `evaluate` asks it too before anything is paid for.

    Transformers isn't asked about what is refused: it writes a list of 1e30 layers without end.
    """
    for key in keys_of(family):
        config = {**whole(family), key: VALUES[kind]}
        found, refused = outcome(said, config)
        if found is None:
            assert isinstance(refused, InputError), key
            assert re.search(rf"{key}|activation|head", str(refused)), key
        elif (expected := outcome(by_transformers, config)[0]) is not None:
            assert found == expected, key


FREQUENCIES = WHOLE["head_dim"] // 2
ROTARY: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "llama3": {key: value for key, value in tiny.LLAMA3_ROPE.items() if key != "rope_theta"},
    "yarn": {**tiny.YARN_ROPE, "beta_fast": 16, "truncate": True, "attention_factor": 1.5},
    "longrope": {
        "rope_type": "longrope",
        "original_max_position_embeddings": 64,
        "factor": 2.0,
        "attention_factor": 1.5,
        "short_factor": [1.0] * FREQUENCIES,
        "long_factor": [2.0] * FREQUENCIES,
    },
}


@pytest.mark.parametrize(
    "kind", [kind for kind in VALUES if kind not in ("odd", "other", "whole float", "fraction")]
)
@pytest.mark.parametrize("name", ROTARY)
def test_a_bad_rotary_number_is_named(name: str, kind: str):
    optional = {"beta_fast", "truncate", "attention_factor", "rope_type"}
    optional |= {"factor"} if name == "longrope" else set()
    for key in ROTARY[name]:
        config = {"model_type": "llama", **WHOLE, "rope_scaling": None}
        config["rope_parameters"] = {**ROTARY[name], key: VALUES[kind]}
        if (kind == "null" and key in optional) or (key == "truncate" and kind in ("true", "false")):
            continue
        if kind == "huge" and key != "original_max_position_embeddings":
            continue
        with pytest.raises(InputError, match=f"{key}|rope type|each kind of layer"):
            describe(config, "m")


@pytest.mark.parametrize("rotary", ROTARY.values(), ids=ROTARY)
def test_rotary_embeddings_are_read_alike(rotary: dict[str, Any]):
    config = {"model_type": "llama", **WHOLE, "rope_scaling": None, "rope_parameters": rotary}
    assert said(config) == by_transformers(config)
    later = {"model_type": "llama", **WHOLE, "rope_scaling": rotary}
    assert said(later) == by_transformers(later)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"num_attention_heads": 6, "num_key_value_heads": 4},
            "num_attention_heads is 6 and num_key_value_he",
        ),
        (
            {"head_dim": None, "num_attention_heads": 7, "num_key_value_heads": 7},
            "hidden_size is 512 and num",
        ),
        ({"head_dim": 7}, "even number"),
        ({"per_layer_config": {"0": {"intermediate_size": 8}}}, "unlike widths .per_layer_config in"),
        ({"block_configs": []}, "unlike widths .block_configs in"),
        ({"rope_scaling": {"full_attention": {"rope_type": "default"}}}, "each kind of layer"),
        ({"partial_rotary_factor": 0.5, "rope_scaling": None}, "rotates 0.5 of each head"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], words: str):
    with pytest.raises(InputError, match=words):
        describe({"model_type": "llama", **WHOLE, **changes}, "m")


def test_layer_types_must_fit_the_layers():
    for kinds in (["full_attention"], ["full_attention"] * 3 + ["linear_attention"], []):
        with pytest.raises(InputError, match="layer_types has"):
            describe({"model_type": "qwen3", **WHOLE, "layer_types": kinds}, "m")


PRUNED = {"model_type": "prunecast_llama", "base_model_type": "llama", **WHOLE, "rope_scaling": None}


def test_widths_of_layers_are_read_out_of_an_exports_configuration():
    """Numbers may be padded, as transformers pads them, and what is left out is as in the dense model."""
    layers = {"00": {"intermediate_size": 8}, "2": {"skip": ["mlp"]}, "03": {"skip": ["attention", "mlp"]}}
    shape = describe({**PRUNED, "per_layer_config": layers}, "m").shape
    assert shape.family == "llama"
    assert shape.dense().to_json() == [[4, 16, 8], [4, 16, 48], [4, 16, 0], [0, 0, 0]]
    alike = describe({**PRUNED, "per_layer_config": {}}, "m").shape
    assert alike == describe({**PRUNED, "model_type": "llama"}, "m").shape


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (None, "per_layer_config is a NoneType"),
        ({"4": {}}, "holds layer 4; expected an entry for some of the 4 layers"),
        ({"first": {}}, "holds layer first"),
        ({"1": [8]}, "per_layer_config.1 is a list"),
        ({"01": {"intermediate_size": 0}}, r"per_layer_config\.01\.intermediate_size is 0"),
        ({"1": {"num_key_value_heads": 3}}, "64 and num_key_value_heads 3; expected a whole"),
        ({"1": {"skip": ["norm"]}}, r"per_layer_config\.1\.skip is"),
        ({str(i): {"skip": ["attention"]} for i in range(4)}, "no layer an attention"),
        ({str(i): {"skip": ["mlp"]} for i in range(4)}, "no layer an MLP"),
    ],
)
def test_widths_that_cannot_be_are_refused(layers: Any, words: str):
    with pytest.raises(InputError, match=words):
        describe({**PRUNED, "per_layer_config": layers}, "m")


def test_an_export_of_an_unknown_family_is_refused():
    with pytest.raises(InputError, match="of the family 'gpt2'; supported"):
        describe({**PRUNED, "base_model_type": "gpt2", "per_layer_config": {}}, "m")
