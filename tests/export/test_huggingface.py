"""An exported folder holds what the dense model computes with the removed units masked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.architecture import Architecture, ModelShape
from stages.export import huggingface
from tests.export.dense import (
    FAMILY_OPTIONS,
    HIDDEN,
    HOLLOW,
    LAYERS,
    MIXED,
    VOCABULARY,
    assert_same,
    export,
    load,
    logits,
    make_dense,
    masked,
    sliced,
    tokens,
)


def contents(folder: Path) -> Mapping[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("architecture", [MIXED, HOLLOW], ids=["mixed", "hollow"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILY_OPTIONS)
def test_export_equals_the_masked_dense_model(
    tmp_path: Path, family: str, tied: bool, architecture: Architecture
) -> None:
    dense = make_dense(family, tied)
    exported = load(export(tmp_path / "model", dense, architecture))
    before = logits(dense.model, tokens())
    expected = logits(masked(dense, architecture), tokens())
    assert not torch.allclose(before, expected, atol=0.1), "the pruning changes nothing: a blind test"
    assert_same(logits(exported, tokens()), expected)
    outside = dense.shape.total_parameters - dense.shape.decoder_parameters
    assert exported.num_parameters() == architecture.kept_parameters(dense.shape) + outside
    assert exported.config.base_model_type == family


def test_a_first_kind_without_any_attention_is_refused(tmp_path: Path) -> None:
    dense = make_dense("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1)
    with pytest.raises(ValueError, match="at least one layer of the first layer's kind"):
        export(tmp_path / "model", dense, HOLLOW)


@pytest.mark.parametrize("family", FAMILY_OPTIONS)
def test_equal_widths_need_no_code_of_ours(tmp_path: Path, family: str) -> None:
    dense = make_dense(family)
    architecture = Architecture.from_json([[2, 2, 20]] * LAYERS)
    folder = export(tmp_path / "model", dense, architecture)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == family
    assert not {"auto_map", "per_layer_config", "base_model_type"} & config.keys()
    assert not list(folder.glob("*.py"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model) is type(dense.model)
    assert_same(logits(model, tokens()), logits(masked(dense, architecture), tokens()))


def test_equal_widths_that_llama_refuses_use_our_code(tmp_path: Path) -> None:
    """Llama wants its heads to divide the hidden size: 5 of 6 heads do not divide 36."""
    dense = make_dense("llama", num_key_value_heads=6)  # six groups of one head
    architecture = Architecture.from_json([[5, 1, 64]] * LAYERS)
    model = load(export(tmp_path / "model", dense, architecture))
    assert model.config.model_type == "prunecast_llama"
    assert_same(logits(model, tokens()), logits(masked(dense, architecture), tokens()))


def small_tokenizer() -> transformers.PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(VOCABULARY - 3))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    fast.chat_template = "{% for m in messages %}{{ '<s> ' + m['content'] + ' </s>' }}{% endfor %}"
    return fast


def test_tokenizer_generation_settings_and_dtype_come_along(tmp_path: Path) -> None:
    dense = make_dense("llama")
    dense.config.quantization_config = {"quant_method": "gguf"}
    folder = export(
        tmp_path / "model", dense, MIXED,
        tokenizer=small_tokenizer(),
        generation_config=transformers.GenerationConfig(max_new_tokens=7, eos_token_id=[2, 5]),
        dtype=torch.bfloat16,
    )  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    assert config["architectures"] == ["PrunecastLlamaForCausalLM"]
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_prunecast.PrunecastLlamaForCausalLM"
    model = load(folder)
    assert model.dtype == torch.bfloat16
    assert (model.generation_config.max_new_tokens, model.generation_config.eos_token_id) == (7, [2, 5])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("w0 w5 w93")["input_ids"] == [3, 8, 96]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "w1"}], tokenize=False)
    assert chat == "<s> w1 </s>"


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
    dense = make_dense("llama", tied=True)
    state = {k: v for k, v in {**sliced(dense, HOLLOW), **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        export(tmp_path / "model", dense, HOLLOW, state=state)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["_check_written", "_sync", "_take_place"])
def test_a_failed_write_leaves_the_previous_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    dense = make_dense("llama")
    folder = export(tmp_path / "model", dense, HOLLOW)
    before = contents(folder)

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(huggingface, step, fail)
    with pytest.raises(KeyboardInterrupt):
        export(folder, dense, MIXED)
    assert contents(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_an_export_replaces_the_whole_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(huggingface, "_exchange", lambda *_: False)
    dense = make_dense("llama")
    folder = export(tmp_path / "model", dense, HOLLOW)
    (folder / "stale.txt").write_text("of the previous export")
    (tmp_path / ".model.partial").mkdir()  # what a kill left
    export(folder, dense, MIXED)
    assert not (folder / "stale.txt").exists()
    assert list(tmp_path.iterdir()) == [folder]
    assert load(folder).num_parameters() == sum(t.numel() for t in sliced(dense, MIXED).values())


def test_a_wrong_parameter_count_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelShape, "mlp_parameters", lambda *_: 1)
    with pytest.raises(ValueError, match="parameters; expected"):
        export(tmp_path / "model", make_dense("llama"), MIXED)
    assert list(tmp_path.iterdir()) == []
