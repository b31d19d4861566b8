"""Tokenizers as GGUF fields: derived where llama.cpp splits text alike, copied from a file, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stages.export.gguf import write_file
from stages.export.gguf_tokenizer import Fields, UnsupportedError, copied, derived
from tests import tiny
from tests.export.deployable import (
    CHAT,
    NEMO,
    PRE_TOKENIZERS,
    UNIFORM,
    VOCABULARY,
    pruned_model,
    split,
    trained_tokenizer,
)


def values(fields: Fields) -> dict[str, Any]:
    return {name.removeprefix("tokenizer."): field.value for name, field in fields.items()}


def test_vocabulary_merges_and_special_tokens() -> None:
    tokenizer = trained_tokenizer()
    found = values(derived(tokenizer, VOCABULARY))
    tokens, types = found["ggml.tokens"], found["ggml.token_type"]
    assert len(tokens) == len(types) == VOCABULARY
    for name, row in tokenizer.get_vocab().items():
        assert tokens[row] == name
    assert types[:4] == [TokenType.CONTROL] * 4  # <pad> <bos> <eos> <user>
    assert types[4] == TokenType.NORMAL
    tool = tokenizer.get_vocab()["<tool>"]
    assert types[tool] == TokenType.USER_DEFINED
    assert types[tool + 1 :] == [TokenType.UNUSED] * (VOCABULARY - tool - 1)
    assert found["ggml.model"] == "gpt2"
    assert (found["ggml.bos_token_id"], found["ggml.eos_token_id"], found["ggml.padding_token_id"]) == (
        1,
        2,
        0,
    )
    assert "ggml.unknown_token_id" not in found
    assert (found["ggml.add_bos_token"], found["ggml.add_eos_token"]) == (False, False)
    assert found["chat_template"] == CHAT
    first, second = found["ggml.merges"][0].split(" ")
    assert first + second in tokens


def test_whether_text_begins_with_bos_is_tried() -> None:
    assert values(derived(trained_tokenizer(bos=True), VOCABULARY))["ggml.add_bos_token"] is True


def test_named_chat_templates() -> None:
    tokenizer = trained_tokenizer()
    tokenizer.chat_template = {"default": "a", "tool_use": "b"}
    found = values(derived(tokenizer, VOCABULARY))
    assert found["chat_template"] == "a"
    assert found["chat_template.tool_use"] == "b"
    assert found["chat_templates"] == ["tool_use"]
    tokenizer.chat_template = None
    assert not [name for name in values(derived(tokenizer, VOCABULARY)) if "chat" in name]


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_pre_tokenizers_that_llama_cpp_knows(name: str) -> None:
    pre, ignore_merges = PRE_TOKENIZERS[name]
    assert values(derived(trained_tokenizer(pre, ignore_merges), VOCABULARY))["ggml.pre"] == name


def without_eos() -> Any:
    tokenizer = trained_tokenizer()
    tokenizer.eos_token = None
    return tokenizer


def sentencepiece_like() -> PreTrainedTokenizerFast:
    vocabulary = {"<unk>": 0, "▁": 1, "a": 2, "▁a": 3, "</s>": 4}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "a")], byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (sentencepiece_like, "the tokenizer is a BPE with the normalizer None; only byte-level BPE"),
        (lambda: trained_tokenizer(split(r"\w+|\W+")), r"no name for .*\\\\w\+.*copied"),
        (lambda: trained_tokenizer(split(NEMO), ignore_merges=True), "llama.cpp has no name for"),
        (lambda: trained_tokenizer(pre_tokenizers.Metaspace()), "'unknown: Metaspace'"),
        (lambda: trained_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=True)), "unknown: ByteLevel"),
        (lambda: trained_tokenizer(ignore_merges=True), "without merging whole words"),
        (tiny.byte_tokenizer, "the tokenizer has no merges"),
        (without_eos, "no end-of-sequence token"),
    ],
    ids=[
        "sentencepiece",
        "pattern",
        "tekken",
        "metaspace",
        "prefix-space",
        "ignore-merges",
        "no-merges",
        "no-eos",
    ],
)
def test_what_cannot_be_derived_is_refused(make: Any, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        derived(make(), VOCABULARY)


def test_more_tokens_than_embeddings_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="has a token 315, but the model's embedding has 300 rows"):
        derived(trained_tokenizer(), 300)


def test_a_files_tokenizer_is_copied_as_it_is(tmp_path: Path) -> None:
    model = pruned_model(tmp_path, UNIFORM)
    write_file(tmp_path / "model.gguf", model, "Q8_0")
    assert copied(tmp_path / "model.gguf") == model.tokenizer
    assert set(values(model.tokenizer)) >= {"ggml.tokens", "ggml.merges", "chat_template"}
