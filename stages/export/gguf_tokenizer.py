"""A tokenizer as the `tokenizer.*` fields of a GGUF file: copied from the source's file, or derived.

llama.cpp tokenises by its own code, which knows a pre-tokenizer (how text is split before merging) only
by name. So a tokenizer is derived only where its pre-tokenizer is one of those, part by part.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from gguf import GGUFReader, GGUFValueType, Keys, TokenType


class UnsupportedError(ValueError):
    """llama.cpp cannot hold this model or tokenizer exactly; the message names what it lacks."""


class Field(NamedTuple):
    """A value of a GGUF file's header; `element` is the type of an array's items."""

    value: Any
    type: GGUFValueType
    element: GGUFValueType | None = None


Fields = dict[str, Field]

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = "the pattern of GPT-2"
_PRE_TOKENIZERS: dict[tuple[tuple[str, ...], bool], str] = {
    ((_GPT2,), False): "gpt-2",
    (("every digit alone", _GPT2), False): "smollm",
    ((_CONTRACTIONS + _WORDS + r"\p{N}{1,3}" + _REST,), True): "llama-bpe",
    ((_CONTRACTIONS + _WORDS + r"\p{N}{1,3}" + _REST,), False): "dbrx",
    ((_CONTRACTIONS + _WORDS + r"\p{N}" + _REST,), False): "qwen2",
}
"""llama.cpp's name of a pre-tokenizer, by the patterns that split and whether whole words skip merging
(llama.cpp, src/llama-vocab.cpp, `llm_tokenizer_bpe`). Its "tekken" is not here: it splits capitals beyond
ASCII otherwise than Mistral's own pattern."""

_NOT_PLAIN = ("dropout", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")
_SPECIAL = {"bos": Keys.Tokenizer.BOS_ID, "eos": Keys.Tokenizer.EOS_ID}
_SPECIAL |= {"unk": Keys.Tokenizer.UNK_ID, "pad": Keys.Tokenizer.PAD_ID}
_REMEDY = "Name the same model as a GGUF file in model.source, and its own tokenizer fields are copied"


def copied(path: Path) -> Fields:
    """The tokenizer of a GGUF file, chat template included, as it stands there."""
    found: Fields = {}
    for name, field in GGUFReader(path).fields.items():
        if name.startswith("tokenizer."):
            found[name] = Field(field.contents(), field.types[0], (*field.types[1:], None)[0])
    return found


def derived(tokenizer: Any, rows: int) -> Fields:
    """The fields of a transformers tokenizer for a model of so many embedding rows.

    Unicode normalisation (Qwen's NFC) is not among them: llama.cpp takes text as it comes.

    Raises:
        UnsupportedError: it is no byte-level BPE, llama.cpp knows no such pre-tokenizer, it has no merges or
            no end-of-sequence token, or it has more tokens than the embedding has rows.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UnsupportedError(f"the tokenizer {type(tokenizer).__name__} has no tokenizer.json. {_REMEDY}")
    content = json.loads(backend.to_str())
    model = content["model"]
    pre = _pre_tokenizer(content)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    if not merges:
        raise UnsupportedError(
            "the tokenizer has no merges, and llama.cpp loads no byte-level BPE without them"
        )
    names, types = _tokens(model["vocab"], content["added_tokens"], rows)
    text, integer = GGUFValueType.STRING, GGUFValueType.INT32
    fields = {
        Keys.Tokenizer.MODEL: Field("gpt2", text),
        Keys.Tokenizer.PRE: Field(pre, text),
        Keys.Tokenizer.LIST: Field(names, GGUFValueType.ARRAY, text),
        Keys.Tokenizer.TOKEN_TYPE: Field(types, GGUFValueType.ARRAY, integer),
        Keys.Tokenizer.MERGES: Field(merges, GGUFValueType.ARRAY, text),
        Keys.Tokenizer.ADD_PREFIX: Field(False, GGUFValueType.BOOL),
    }
    if tokenizer.eos_token_id is None:
        raise UnsupportedError(
            "the tokenizer has no end-of-sequence token; llama.cpp would take token 11 for it"
        )
    for name, key in _SPECIAL.items():
        token = getattr(tokenizer, f"{name}_token_id")
        if token is not None:
            fields[key] = Field(token, GGUFValueType.UINT32)
    ids = tokenizer("a")["input_ids"]
    for key, added in (
        (Keys.Tokenizer.ADD_BOS, tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id),
        (Keys.Tokenizer.ADD_EOS, ids[-1] == tokenizer.eos_token_id),
    ):
        fields[key] = Field(added, GGUFValueType.BOOL)
    return fields | _chat_templates(tokenizer.chat_template)


def _pre_tokenizer(content: dict[str, Any]) -> str:
    """llama.cpp's name of it. Raises UnsupportedError if there is none."""
    model, normalizer = content["model"], content["normalizer"]
    plain = not any(
        model.get(key)
        for key in ("dropout", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")
    )
    if model["type"] != "BPE" or not plain or (normalizer or {"type": "NFC"})["type"] != "NFC":
        raise UnsupportedError(
            f"the tokenizer is a {model['type']} with the normalizer {(normalizer or {}).get('type')}; "
            f"only byte-level BPE can be derived. {_REMEDY}"
        )
    parts = _parts(content["pre_tokenizer"] or {"type": "none"})
    name = _PRE_TOKENIZERS.get((parts, bool(model.get("ignore_merges"))))
    if name is None:
        raise UnsupportedError(
            f"llama.cpp has no name for this tokenizer's way to split text, {list(parts)}"
            f"{' without merging whole words' if model.get('ignore_merges') else ''}. {_REMEDY}"
        )
    return name


def _parts(pre_tokenizer: dict[str, Any]) -> tuple[str, ...]:
    """The patterns by which a pre-tokenizer splits, in order; "unknown: …" for what llama.cpp cannot do."""
    match pre_tokenizer:
        case {"type": "Sequence", "pretokenizers": children}:
            return tuple(part for child in children for part in _parts(child))
        case {"type": "Digits", "individual_digits": True}:
            return ("every digit alone",)
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return (str(pattern),)
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": regex}:
            return (_GPT2,) if regex else ()
    return (f"unknown: {pre_tokenizer['type']}",)


def _tokens(
    vocabulary: dict[str, int], added: list[dict[str, Any]], rows: int
) -> tuple[list[str], list[int]]:
    """Name and type of the token of every embedding row; rows without a token are unused."""
    largest = max([*vocabulary.values(), *(token["id"] for token in added)])
    if largest >= rows:
        raise UnsupportedError(
            f"the tokenizer has a token {largest}, but the model's embedding has {rows} rows"
        )
    names, types = [f"[PAD{row}]" for row in range(rows)], [int(TokenType.UNUSED)] * rows
    for name, row in vocabulary.items():
        names[row], types[row] = name, int(TokenType.NORMAL)
    for token in added:
        kind = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
        names[token["id"]], types[token["id"]] = token["content"], int(kind)
    return names, types


def _chat_templates(templates: str | dict[str, str] | None) -> Fields:
    named = {"default": templates} if isinstance(templates, str) else templates or {}
    others = sorted(name for name in named if name != "default")
    text = GGUFValueType.STRING
    fields = {f"{Keys.Tokenizer.CHAT_TEMPLATE}.{name}": Field(named[name], text) for name in others}
    if others:
        fields[Keys.Tokenizer.CHAT_TEMPLATES] = Field(others, GGUFValueType.ARRAY, text)
    if "default" in named:
        fields[Keys.Tokenizer.CHAT_TEMPLATE] = Field(named["default"], text)
    return fields
