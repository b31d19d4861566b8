"""Shapes and recipes from configurations, and the errors for what no family or recipe knows."""

from __future__ import annotations

from typing import Any

import pytest

from stages.architecture import ModelShape
from stages.families import FAMILIES, BlockRecipe, describe, family_of
from stages.families.family import usual_settings
from stages.files import InputError

LLAMA_2_7B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}
QWEN2_05B = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
QWEN3_06B = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "attention_bias": False,
}
GEMMA3_270M = {
    "model_type": "gemma3_text",
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_attention_heads": 4,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "vocab_size": 262144,
}
OLMO2_1B = {
    "model_type": "olmo2",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 16,
    "num_hidden_layers": 16,
    "vocab_size": 100352,
}
MISTRAL_7B = LLAMA_2_7B | {"model_type": "mistral", "num_key_value_heads": 8, "intermediate_size": 14336}


@pytest.mark.parametrize(
    ("config", "parameters"),
    [  # sizes that the models' publishers state
        (LLAMA_2_7B, 6_738_415_616),
        (QWEN2_05B, 494_032_768),
        (QWEN3_06B, 596_049_920),
        (MISTRAL_7B, 7_241_732_096),
        (GEMMA3_270M, 268_098_176),
        (OLMO2_1B, 1_484_916_736),
    ],
    ids=["Llama-2-7B", "Qwen2.5-0.5B", "Qwen3-0.6B", "Mistral-7B", "Gemma-3-270M", "OLMo-2-1B"],
)
def test_published_sizes(config: dict[str, Any], parameters: int):
    shape = describe(config, "x").shape
    assert shape.total_parameters == parameters
    assert shape.family == config["model_type"]


def test_llama_shape_without_optional_keys():
    assert describe(LLAMA_2_7B, "x").shape == ModelShape(
        "llama", 32, 4096, 32, 1, 128, 11008, 32000, tied_embeddings=False
    )


def test_null_optional_keys_count_as_absent():
    nulls = LLAMA_2_7B | {"num_key_value_heads": None, "head_dim": None}
    assert describe(nulls, "x") == describe(LLAMA_2_7B, "x")


OURS = ("llama", "mistral", "qwen2", "qwen3", "phi3", "granite")


def test_flags_of_the_families():
    flags = {
        name: (s.qkv_bias, s.o_bias, s.mlp_bias, s.qk_norm)
        for name in OURS
        for s in [
            describe(LLAMA_2_7B | {"model_type": name, "attention_bias": True, "mlp_bias": True}, "x").shape
        ]
    }
    assert flags == {
        "llama": (True, True, True, False),
        "mistral": (False, False, False, False),
        "qwen2": (True, False, False, False),
        "qwen3": (True, True, False, True),
        "phi3": (False, False, False, False),
        "granite": (True, True, True, False),
    }


@pytest.mark.parametrize("config", [LLAMA_2_7B, QWEN2_05B, QWEN3_06B, MISTRAL_7B])
def test_settings_are_the_inverse_of_a_shape(config: dict[str, Any]):
    shape = describe(config, "x").shape
    again = {"model_type": shape.family, **usual_settings(shape)}
    assert describe(again, "x").shape == shape


def recipe_of(config: dict[str, Any], **changes: Any) -> BlockRecipe:
    return describe(config | changes, "some/model").recipe


def test_rotary_embeddings_are_read_as_transformers_4_and_5_write_them():
    four = recipe_of(LLAMA_2_7B, rope_theta=1e5, rope_scaling={"type": "linear", "factor": 2.0})
    five = recipe_of(LLAMA_2_7B, rope_parameters={"rope_type": "linear", "rope_theta": 1e5, "factor": 2.0})
    for layer in (0, 31):
        assert (four.rotary[layer] or {})["rope_type"] == "linear"
        assert (four.rotary[layer] or {})["rope_theta"] == (five.rotary[layer] or {})["rope_theta"] == 1e5
    assert recipe_of(LLAMA_2_7B).rotary[7] == {"rope_theta": 10000.0, "rope_type": "default"}


def test_windows_by_layer():
    assert recipe_of(LLAMA_2_7B, sliding_window=9).windows == (None,) * 32  # Llama reads none
    assert recipe_of(MISTRAL_7B, sliding_window=9).windows == (9,) * 32
    assert recipe_of(MISTRAL_7B, sliding_window=None).windows == (None,) * 32
    assert recipe_of(QWEN2_05B, sliding_window=9).windows == (None,) * 24  # not used unless asked for
    asked = {"use_sliding_window": True, "sliding_window": 9}
    assert recipe_of(QWEN2_05B, **asked, max_window_layers=20).windows == (None,) * 20 + (9,) * 4
    kinds = ["full_attention", "sliding_attention"] * 14
    found = recipe_of(QWEN3_06B, **asked, layer_types=kinds)
    assert found.windows == (None, 9) * 14
    described = describe(MISTRAL_7B | {"sliding_window": 9, "max_position_embeddings": 30}, "x")
    assert described.context_tokens == 30  # beyond the window texts are run as the model runs them


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "relu2"}, "the activation 'relu2'; supported: silu, gelu_pytorch_tanh"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "the rope type 'dynamic'; supported: default"),
        ({"rope_parameters": {"rope_type": "su"}}, "the rope type 'su'; supported: default"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rotates 0.5 of each head"),
        ({"num_local_experts": 8}, r"a mixture of experts \(num_local_experts: 8\)"),
    ],
)
def test_a_lacking_piece_is_named(changes: dict[str, Any], words: str):
    with pytest.raises(InputError, match=rf"'some/model', of the family 'llama', .*{words}"):
        recipe_of(LLAMA_2_7B, **changes)


PHI_4_MINI: dict[str, Any] = {
    "model_type": "phi3",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "vocab_size": 200064,
    "tie_word_embeddings": True,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "partial_rotary_factor": 0.75,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48},
    "sliding_window": 262144,
}


def test_phi_4_mini_is_read_with_its_longrope():
    described = describe(PHI_4_MINI, "x")
    assert described.shape.total_parameters == 3_836_021_760
    (rotary,) = {id(r): r for r in described.recipe.rotary}.values()
    assert rotary is not None
    assert (rotary["rope_type"], rotary["partial_rotary_factor"], rotary["factor"]) == ("longrope", 0.75, 32)
    assert rotary["original_max_position_embeddings"] == 4096
    assert described.context_tokens == 131072
    first = describe(PHI_4_MINI | {"rope_scaling": PHI_4_MINI["rope_scaling"] | {"type": "su"}}, "x")
    assert first.recipe.rotary[0] == {**rotary, "type": "su"}


@pytest.mark.parametrize(("share", "turned"), [(1.5, 192), (0.01, 1), (0.7, 89)])
def test_a_part_of_a_head_is_an_even_number_of_elements(share: float, turned: int):
    config = {**PHI_4_MINI, "rope_scaling": None, "partial_rotary_factor": share}
    with pytest.raises(InputError, match=f"turns {turned} elements of a head of 128; expected an even"):
        describe(config, "x")


@pytest.mark.parametrize("key", ["short_factor", "long_factor"])
def test_a_longrope_needs_a_factor_for_every_frequency(key: str):
    scaling = PHI_4_MINI["rope_scaling"]
    with pytest.raises(InputError, match=rf"rope_scaling\.{key} has 47 numbers; expected 48"):
        describe(PHI_4_MINI | {"rope_scaling": scaling | {key: [1.0] * 47}}, "x")
    with pytest.raises(InputError, match=rf"rope_scaling\.{key} is missing"):
        describe(PHI_4_MINI | {"rope_scaling": {k: v for k, v in scaling.items() if k != key}}, "x")


def test_an_unknown_mixture_of_experts_is_told():
    config = {"model_type": "mixtral", "num_local_experts": 8}
    with pytest.raises(InputError, match=r"'mixtral', and is a mixture of experts .* supported families: ge"):
        family_of(config, "some/model")


def test_a_model_of_images_and_text_is_told_by_its_text_model():
    config = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}, "vision_config": {}}
    with pytest.raises(InputError, match=r"'gemma3', which reads more than text; .*'gemma3_text'\) can be"):
        family_of(config, "some/model")


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="families has a 'llama' already"):
        FAMILIES.add("llama", FAMILIES["llama"])


@pytest.mark.parametrize("model_type", ["gpt2", None])
def test_an_unsupported_family_lists_the_supported_ones(model_type: str | None):
    with pytest.raises(InputError) as caught:
        family_of({"model_type": model_type}, "some/model")
    message = str(caught.value)
    assert "'some/model'" in message
    assert repr(model_type) in message
    for family in ("llama", "mistral", "qwen2", "qwen3", "stages/families/family.py"):
        assert family in message
