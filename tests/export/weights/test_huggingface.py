"""An exported folder holds what the dense model computes with the removed units masked."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.architecture import Architecture
from tests import tiny
from tests.tiny import (
    HIDDEN,
    HOLLOW,
    LAYERS,
    MIXED,
    VOCABULARY,
    export,
    exported,
    masked,
    random_model,
    sliced,
)


def logits(model: Any) -> torch.Tensor:
    return tiny.reference_logits(model, tiny.random_tokens())


def config_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


STOCK = [name for name in tiny.EXPORTED if name != "phi4"]
"""Phi-3's stock configuration takes its factors to be those of all the heads that the hidden size holds."""


def test_where_factors_are_of_the_dense_heads_fewer_heads_are_no_plain_model(tmp_path: Path) -> None:
    dense = variant("phi4")
    for widths, plain in (((2, 3, 33), True), ((1, 3, 64), False)):
        architecture = Architecture.from_json([widths] * LAYERS)
        folder = export(tmp_path / str(plain), dense, architecture)
        assert ("auto_map" not in config_of(folder)) == plain
        tiny.assert_same(logits(exported(folder)), logits(masked(copy.deepcopy(dense), architecture)))


def variant(name: str, **options: Any) -> Any:
    return random_model(tiny.EXPORTED[name].family, **{**tiny.EXPORTED[name].options, **options})


@pytest.mark.parametrize("architecture", [MIXED, HOLLOW], ids=["mixed", "hollow"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", tiny.EXPORTED)
def test_export_equals_the_masked_dense_model(
    tmp_path: Path, name: str, tied: bool, architecture: Architecture
) -> None:
    dense = variant(name, tie_word_embeddings=tied)
    shape = tiny.shape_of(dense)
    architecture = tiny.fitted(architecture, shape)
    model = exported(export(tmp_path / "model", dense, architecture))
    before = logits(dense)
    expected = logits(masked(dense, architecture))
    assert not torch.allclose(before, expected, atol=0.1), "the pruning changes nothing: a blind test"
    tiny.assert_same(logits(model), expected)
    outside = shape.total_parameters - shape.decoder_parameters
    assert model.num_parameters() == architecture.kept_parameters(shape) + outside
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert model.config.base_model_type == shape.family


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_configuration_says_what_transformers_expects_of_it(tmp_path: Path, tied: bool) -> None:
    dense = random_model("llama", tie_word_embeddings=tied, rope_parameters=tiny.LLAMA3_ROPE)
    dense.config._name_or_path = "/home/someone/models/dense"
    folder = export(tmp_path / "model", dense, HOLLOW, dtype=torch.bfloat16)
    config = config_of(folder)
    no_attention = {"num_attention_heads": 1, "num_key_value_heads": 1}
    assert config["per_layer_config"] == {
        "0": {**no_attention, "intermediate_size": 40, "skip": ["attention"]},
        "1": {"num_attention_heads": 4},
        "2": {**no_attention, "skip": ["attention", "mlp"]},
        "3": {"intermediate_size": 7, "num_attention_heads": 3, "num_key_value_heads": 1},
    }
    widests = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "num_hidden_layers")
    assert [config[key] for key in widests] == [6, 2, 64, 4]
    assert (config["dtype"], config["tie_word_embeddings"]) == ("bfloat16", tied)
    assert config["architectures"] == ["PrunecastLlamaForCausalLM"]
    assert (config["head_dim"], config["rope_parameters"]) == (tiny.HEAD_DIM, tiny.LLAMA3_ROPE)
    assert {name.split(".")[0] for name in config["auto_map"].values()} == {"modeling_prunecast"}
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}
    assert "/home/someone" not in (folder / "config.json").read_text()
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert ("lm_head.weight" in file.keys()) != tied  # noqa: SIM118
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("width", [(2, 2, 20), (1, 3, 64), (2, 3, 33), (1, 1, 8)], ids=str)
@pytest.mark.parametrize("name", STOCK)
def test_equal_widths_need_no_code_of_ours(
    tmp_path: Path, name: str, width: tuple[int, int, int], tied: bool
) -> None:
    dense = variant(name, tie_word_embeddings=tied)
    architecture = tiny.fitted(Architecture.from_json([width] * LAYERS), tiny.shape_of(dense))
    groups, heads, channels = architecture.widths[0]
    folder = export(tmp_path / "model", dense, architecture)
    config = config_of(folder)
    assert config["model_type"] == dense.config.model_type
    widths = ("num_key_value_heads", "num_attention_heads", "intermediate_size")
    assert tuple(config[key] for key in widths) == (groups, groups * heads, channels)
    assert not {"auto_map", "per_layer_config", "base_model_type"} & config.keys()
    assert not list(folder.glob("*.py"))
    rotary = config["rope_parameters"]  # and for transformers 4
    assert config["rope_theta"] == rotary.get("full_attention", rotary)["rope_theta"]
    if "sliding_attention" in rotary:
        assert config["rope_local_base_freq"] == rotary["sliding_attention"]["rope_theta"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model) is type(dense)
    assert model.config.rope_parameters == dense.config.rope_parameters
    tiny.assert_same(logits(model), logits(masked(dense, architecture)))


@pytest.mark.parametrize("widths", [HOLLOW, Architecture.from_json([(1, 3, 33)] * LAYERS)])
def test_what_scales_logits_is_said_in_the_words_of_vllm(tmp_path: Path, widths: Architecture) -> None:
    folder = export(tmp_path / "granite" / "model", random_model("granite", **tiny.GRANITE), widths)
    assert config_of(folder)["logit_scale"] == 1 / tiny.GRANITE["logits_scaling"]
    folder = export(tmp_path / "llama" / "model", random_model("llama"), widths)
    assert "logit_scale" not in config_of(folder)


def test_a_plain_folder_says_its_scaled_rotary_embedding_in_the_words_of_transformers_4(
    tmp_path: Path,
) -> None:
    dense = random_model("llama", rope_parameters=tiny.LLAMA3_ROPE)
    architecture = Architecture.from_json([(1, 3, 33)] * LAYERS)
    folder = export(tmp_path / "model", dense, architecture)
    config = config_of(folder)
    assert {"rope_theta": config["rope_theta"], **config["rope_scaling"]} == tiny.LLAMA3_ROPE
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.rope_parameters == dense.config.rope_parameters
    tiny.assert_same(logits(model), logits(masked(dense, architecture)))


GONE = (0, 0, 0)
FEWER = {
    "first and last gone": [GONE, (2, 3, 64), (2, 3, 64), GONE],
    "one gone": [(2, 3, 64), (2, 3, 64), GONE, (2, 3, 64)],
    "narrower, too": [(1, 3, 33), GONE, (1, 3, 33), (1, 3, 33)],
    "one left": [GONE, GONE, (2, 2, 20), GONE],
}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("case", FEWER)
@pytest.mark.parametrize("name", STOCK)
def test_layers_that_are_gone_leave_a_plain_model_of_fewer(
    tmp_path: Path, name: str, case: str, tied: bool
) -> None:
    """Loaded without code of ours; equal to the prefix view and to transformers' own masked model."""
    dense = variant(name, tie_word_embeddings=tied)
    dense.save_pretrained(tmp_path / "dense")
    tiny.byte_tokenizer().save_pretrained(tmp_path / "dense")
    shape = tiny.shape_of(dense)
    architecture = tiny.fitted(Architecture.from_json([list(width) for width in FEWER[case]]), shape)
    network = tiny.network_of(tmp_path / "dense")
    folder = export(tmp_path / "model", dense, architecture, state=network.sliced_state(architecture))
    config = config_of(folder)
    left = [width for width in architecture.widths if width.has_mlp]
    assert (config["model_type"], config["num_hidden_layers"]) == (dense.config.model_type, len(left))
    assert not {"auto_map", "per_layer_config", "base_model_type"} & config.keys()
    assert not list(folder.glob("*.py"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert (type(model), len(model.model.layers)) == (type(dense), len(left))
    before, found = logits(dense), logits(model)
    few = tiny.random_tokens(2, 5)  # the prefix view goes no further than Mistral's window
    tiny.assert_same(tiny.reference_logits(model, few), tiny.elastic_logits(network, architecture, few))
    tiny.assert_same(found, logits(masked(dense, architecture)))
    assert not torch.allclose(before, found, atol=0.1), "the pruning changes nothing: a blind test"
    tokens = tiny.random_tokens(2, 9)
    assert torch.equal(tiny.greedy(model, tokens), tiny.greedy(model, tokens, use_cache=False))


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize("gone", range(4))
def test_each_layer_that_is_left_keeps_its_kind_of_attention(tmp_path: Path, family: str, gone: int) -> None:
    """Two layers of full attention, then two of a sliding window shorter than the text."""
    dense = random_model(family, use_sliding_window=True, sliding_window=4, max_window_layers=2)
    kinds = dense.config.layer_types
    assert len(set(kinds)) == 2
    architecture = Architecture.from_json([[0, 0, 0] if i == gone else [2, 3, 64] for i in range(LAYERS)])
    folder = export(tmp_path / "model", dense, architecture)
    assert config_of(folder)["layer_types"] == [kind for i, kind in enumerate(kinds) if i != gone]
    model = AutoModelForCausalLM.from_pretrained(folder)
    reference = masked(dense, architecture)
    tiny.assert_same(logits(model), logits(reference))
    tokens = tiny.random_tokens(2, 11)
    assert torch.equal(tiny.greedy(model, tokens), tiny.greedy(reference, tokens))


def test_a_tensor_of_an_empty_layer_is_not_taken_for_another_layers(tmp_path: Path) -> None:
    dense = random_model("llama")
    architecture = Architecture.from_json([[2, 3, 64], [0, 0, 0], [2, 3, 64], [2, 3, 64]])
    name = "model.layers.1.mlp.up_proj.weight"
    state = sliced(dense, architecture) | {name: dense.state_dict()[name]}
    with pytest.raises(ValueError, match=f"has '{name} of an empty layer', which its architecture does not"):
        export(tmp_path / "model", dense, architecture, state=state)


def test_equal_widths_that_llama_refuses_use_our_code(tmp_path: Path) -> None:
    """Llama wants its heads to divide the hidden size: 5 of 6 heads do not divide 36."""
    dense = random_model("llama", num_key_value_heads=6)  # six groups of one head
    architecture = Architecture.from_json([[5, 1, 64]] * LAYERS)
    model = exported(export(tmp_path / "model", dense, architecture))
    assert model.config.model_type == "prunecast_llama"
    tiny.assert_same(logits(model), logits(masked(dense, architecture)))


@pytest.mark.parametrize("architecture", [MIXED, Architecture.from_json([[2, 2, 20]] * LAYERS)])
def test_weights_divided_into_several_files(tmp_path: Path, architecture: Architecture) -> None:
    dense = random_model("qwen3")
    folder = export(tmp_path / "model", dense, architecture, max_shard_size="40KB")
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(files) > 2
    assert sorted(set(index["weight_map"].values())) == files
    model = exported(folder)
    tiny.assert_same(logits(model), logits(masked(dense, architecture)))
    model.save_pretrained(tmp_path / "again", max_shard_size="30KB")
    assert torch.equal(logits(exported(tmp_path / "again")), logits(model))


def test_tokenizer_generation_settings_and_dtype_come_along(tmp_path: Path) -> None:
    dense = random_model("llama")
    dense.config.quantization_config = {"quant_method": "gguf"}
    original = tiny.byte_tokenizer()
    original.chat_template = "{% for m in messages %}{{ '<bos>' + m['content'] + '<eos>' }}{% endfor %}"
    folder = export(
        tmp_path / "model", dense, MIXED,
        tokenizer=original,
        generation_config=transformers.GenerationConfig(max_new_tokens=7, eos_token_id=[2, 5]),
        dtype=torch.bfloat16,
    )  # fmt: skip
    assert "quantization_config" not in config_of(folder)
    model = exported(folder)
    assert model.dtype == torch.bfloat16
    assert (model.generation_config.max_new_tokens, model.generation_config.eos_token_id) == (7, [2, 5])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "A model keeps ünits."
    assert tokenizer(text)["input_ids"] == original(text)["input_ids"]
    assert tokenizer.special_tokens_map == original.special_tokens_map
    assert tokenizer.chat_template == original.chat_template
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "w1"}], tokenize=False)
    assert chat == "<bos>w1<eos>"
    model.save_pretrained(tmp_path / "again")
    assert exported(tmp_path / "again").generation_config.to_dict() == model.generation_config.to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.layers.1.mlp.up_proj.weight": None}, "lacks 'model.layers.1.mlp.up_proj.weight'"),
        ({"model.layers.0.self_attn.q_proj.weight": torch.ones(2)}, "has 'model.layers.0.self_attn.q_proj"),
        ({"model.norm.weight": torch.ones(2)}, r"model.norm.weight has the shape \(2,\)"),
        ({"lm_head.weight": torch.ones(VOCABULARY, HIDDEN)}, "has 'lm_head.weight'"),
    ],
    ids=["missing", "dropped", "shape", "tied"],
)
def test_a_state_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    dense = random_model("llama", tie_word_embeddings=True)
    state = {k: v for k, v in {**sliced(dense, HOLLOW), **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        export(tmp_path / "model", dense, HOLLOW, state=state)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_parameter_count_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Architecture, "kept_parameters", lambda *_: 1)
    with pytest.raises(ValueError, match="parameters; expected"):
        export(tmp_path / "model", random_model("llama"), MIXED)
    assert list(tmp_path.iterdir()) == []
