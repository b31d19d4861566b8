"""Tokenizers as GGUF fields: derived where llama.cpp splits text alike, copied from a file, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stages.export.gguf.fields import Fields, UnsupportedError
from stages.export.gguf.tokenizer import copied, departures, derived
from stages.export.gguf.writer import write_file
from tests import tiny
from tests.export.deployable import (
    CHAT,
    NEMO,
    PRE_TOKENIZERS,
    SENTENCEPIECE,
    UNIFORM,
    VOCABULARY,
    pruned_model,
    sentencepiece_tokenizer,
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
        (
            sentencepiece_like,
            r"prepare text as this SentencePiece tokenizer does, by \['Metaspace'\]",
        ),
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


def test_fields_of_a_sentencepiece_tokenizer() -> None:
    found = values(derived(sentencepiece_tokenizer(), 704))
    pieces = [line.split("\t") for line in SENTENCEPIECE.read_text().splitlines()]
    assert found["ggml.tokens"][:700] == [piece for piece, _ in pieces]
    types = found["ggml.token_type"]
    assert types[:3] == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    assert types[3:259] == [TokenType.BYTE] * 256
    assert types[259:700] == [TokenType.NORMAL] * 441
    assert types[700:] == [TokenType.UNUSED] * 4
    assert (found["ggml.model"], found["ggml.add_space_prefix"]) == ("llama", True)
    assert (found["ggml.add_bos_token"], found["ggml.add_eos_token"]) == (True, False)
    assert [found[f"ggml.{name}_token_id"] for name in ("unknown", "bos", "eos")] == [0, 1, 2]
    assert found["chat_template"] == CHAT
    assert "ggml.merges" not in found
    merged = list(range(259, 626))  # SentencePiece's own order of scores
    assert merged == sorted(merged, key=lambda row: -found["ggml.scores"][row])
    assert len({found["ggml.scores"][row] for row in merged}) == len(merged)


@pytest.mark.parametrize(("prefix", "count"), [("normalizer", 0), ("always", 1), ("first", 2), ("never", 0)])
def test_what_sentencepiece_and_transformers_do_otherwise_is_told(prefix: str, count: int) -> None:
    tokenizer = sentencepiece_tokenizer(prefix)
    assert values(derived(tokenizer, 704))["ggml.add_space_prefix"] is (prefix != "never")
    assert len(departures(tokenizer)) == count
    assert departures(trained_tokenizer()) == []


def without_a_byte() -> Any:
    tokenizer = sentencepiece_tokenizer()
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["model"]["vocab"]["<0xNO>"] = content["model"]["vocab"].pop("<0x7F>")
    return rebuilt(content)


def with_merges(change: Any) -> Any:
    content = json.loads(sentencepiece_tokenizer().backend_tokenizer.to_str())
    change(content["model"]["merges"])
    return rebuilt(content)


def doubled(merges: list[Any]) -> int:
    """The place of the first of two merges that make the same token."""
    made = ["".join(pair) for pair in merges]
    return next(i for i in range(len(made) - 1) if made[i] == made[i + 1])


def tear(merges: list[Any]) -> None:
    """One of them goes to the end."""
    merges.append(merges.pop(doubled(merges)))


def rebuilt(content: dict[str, Any]) -> PreTrainedTokenizerFast:
    backend = Tokenizer.from_str(json.dumps(content))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def with_added(**flags: Any) -> Any:
    tokenizer = sentencepiece_tokenizer()
    tokenizer.add_tokens([AddedToken("<tool>", **flags)])
    return tokenizer


def with_lower_case() -> Any:
    tokenizer = sentencepiece_tokenizer("always")
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (without_a_byte, r"has no token <0x7F> \(of 1 bytes\)"),
        (lambda: with_merges(lambda merges: merges.pop(200)), r"and no merge does so.*copied"),
        (lambda: with_merges(tear), "do not stand together"),
        (lambda: with_added(normalized=True), "'<tool>' is found in normalised text"),
        (lambda: with_added(normalized=False, rstrip=True), "'<tool>' is matched with rstrip"),
        (with_lower_case, r"by \['Lowercase', 'Metaspace'\]"),
        (lambda: sentencepiece_tokenizer(ignore_merges=True), r"\['ignore_merges'\]"),
    ],
    ids=["byte", "merge", "order", "normalised", "rstrip", "lower-case", "ignore-merges"],
)
def test_a_sentencepiece_tokenizer_that_llama_cpp_would_run_otherwise(make: Any, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        derived(make(), 704)


def test_merges_of_one_token_may_come_in_any_order_among_themselves() -> None:
    def swap(merges: list[Any]) -> None:
        first = doubled(merges)
        merges[first], merges[first + 1] = merges[first + 1], merges[first]

    assert derived(with_merges(swap), 704)


def test_more_tokens_than_embeddings_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="has a token 315, but the model's embedding has 300 rows"):
        derived(trained_tokenizer(), 300)


def test_a_files_tokenizer_is_copied_as_it_is(tmp_path: Path) -> None:
    model = pruned_model(tmp_path, UNIFORM)
    write_file(tmp_path / "model.gguf", model, "Q8_0")
    assert copied(tmp_path / "model.gguf") == model.tokenizer
    assert set(values(model.tokenizer)) >= {"ggml.tokens", "ggml.merges", "chat_template"}
