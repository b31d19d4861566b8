"""Shapes from configurations, and the error for a family that no adapter knows."""

from __future__ import annotations

from typing import Any

import pytest

from stages.architecture import ModelShape
from stages.families.family import FAMILIES, family_of
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
MISTRAL_7B = LLAMA_2_7B | {"model_type": "mistral", "num_key_value_heads": 8, "intermediate_size": 14336}


@pytest.mark.parametrize(
    ("config", "parameters"),
    [  # sizes that the models' publishers state
        (LLAMA_2_7B, 6_738_415_616),
        (QWEN2_05B, 494_032_768),
        (QWEN3_06B, 596_049_920),
        (MISTRAL_7B, 7_241_732_096),
    ],
    ids=["Llama-2-7B", "Qwen2.5-0.5B", "Qwen3-0.6B", "Mistral-7B"],
)
def test_published_sizes(config: dict[str, Any], parameters: int):
    shape = family_of(config, "x").shape(config)
    assert shape.total_parameters == parameters
    assert shape.family == config["model_type"]


def test_llama_shape_without_optional_keys():
    assert family_of(LLAMA_2_7B, "x").shape(LLAMA_2_7B) == ModelShape(
        "llama", 32, 4096, 32, 1, 128, 11008, 32000, tied_embeddings=False
    )


def test_null_optional_keys_count_as_absent():
    nulls = LLAMA_2_7B | {"num_key_value_heads": None, "head_dim": None}
    assert FAMILIES["llama"].shape(nulls) == FAMILIES["llama"].shape(LLAMA_2_7B)


def test_flags_of_the_families():
    flags = {
        name: (s.qkv_bias, s.o_bias, s.mlp_bias, s.qk_norm)
        for name in FAMILIES
        for s in [
            FAMILIES[name].shape(LLAMA_2_7B | {"model_type": name, "attention_bias": True, "mlp_bias": True})
        ]
    }
    assert flags == {
        "llama": (True, True, True, False),
        "mistral": (False, False, False, False),
        "qwen2": (True, False, False, False),
        "qwen3": (True, True, False, True),
    }


@pytest.mark.parametrize("model_type", ["gpt2", None])
def test_an_unsupported_family_lists_the_supported_ones(model_type: str | None):
    with pytest.raises(InputError) as caught:
        family_of({"model_type": model_type}, "some/model")
    message = str(caught.value)
    assert "'some/model'" in message
    assert repr(model_type) in message
    for family in ("llama", "mistral", "qwen2", "qwen3", "stages/families.py"):
        assert family in message
