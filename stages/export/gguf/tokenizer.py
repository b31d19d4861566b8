"""A tokenizer as the `tokenizer.*` fields of a GGUF file: copied from the source's file, or derived.

llama.cpp tokenises by its own code, which knows a pre-tokenizer (how text is split before merging) only
by name. So a byte-level BPE is derived only where its pre-tokenizer is one of those, part by part; BPE of
SentencePiece (Llama 2, Mistral) is in `gguf_sentencepiece`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gguf import GGUFReader, GGUFValueType, Keys

from stages.export.gguf import sentencepiece
from stages.export.gguf.fields import (
    REMEDY,
    Field,
    Fields,
    UnsupportedError,
    chat_templates,
    check_added,
    special,
    tokens,
)

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


def copied(path: Path) -> Fields:
    """The tokenizer of a GGUF file, chat template included, as it stands there."""
    found: Fields = {}
    for name, field in GGUFReader(path).fields.items():
        if name.startswith("tokenizer."):
            found[name] = Field(field.contents(), field.types[0], (*field.types[1:], None)[0])
    return found


def derived(tokenizer: Any, rows: int) -> Fields:
    """The fields of a transformers tokenizer for a model of so many embedding rows.

    Where llama.cpp then treats some text otherwise, `departures` says so.

    Raises:
        UnsupportedError: it is no byte-level BPE and none of SentencePiece's, llama.cpp knows no such
            pre-tokenizer, it has no merges or no end-of-sequence token, or it has more tokens than the
            embedding has rows.
    """
    content = _content(tokenizer)
    if content["model"].get("byte_fallback"):
        fields = sentencepiece.fields(content, tokenizer.unk_token_id, rows)
    else:
        fields = _byte_level(content, rows)
    return fields | special(tokenizer) | chat_templates(tokenizer.chat_template)


def departures(tokenizer: Any) -> list[str]:
    """What llama.cpp tokenises otherwise than transformers, though every field is right."""
    content = _content(tokenizer)
    if content["model"].get("byte_fallback"):
        return sentencepiece.departures(content)
    if (content["normalizer"] or {}).get("type") == "NFC":
        return [
            "text that is not in Unicode's form NFC, which transformers normalises and llama.cpp does not"
        ]
    return []


def _content(tokenizer: Any) -> dict[str, Any]:
    """The tokenizer.json of it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UnsupportedError(f"the tokenizer {type(tokenizer).__name__} has no tokenizer.json. {REMEDY}")
    return dict(json.loads(backend.to_str()))


def _byte_level(content: dict[str, Any], rows: int) -> Fields:
    model = content["model"]
    pre = _pre_tokenizer(content)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    if not merges:
        raise UnsupportedError(
            "the tokenizer has no merges, and llama.cpp loads no byte-level BPE without them"
        )
    check_added(content)
    names, types = tokens(model["vocab"], content["added_tokens"], rows)
    text, integer = GGUFValueType.STRING, GGUFValueType.INT32
    return {
        Keys.Tokenizer.MODEL: Field("gpt2", text),
        Keys.Tokenizer.PRE: Field(pre, text),
        Keys.Tokenizer.LIST: Field(names, GGUFValueType.ARRAY, text),
        Keys.Tokenizer.TOKEN_TYPE: Field(types, GGUFValueType.ARRAY, integer),
        Keys.Tokenizer.MERGES: Field(merges, GGUFValueType.ARRAY, text),
        Keys.Tokenizer.ADD_PREFIX: Field(False, GGUFValueType.BOOL),
    }


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
            f"only byte-level BPE and SentencePiece's BPE with byte fallback can be derived. {REMEDY}"
        )
    parts = _parts(content["pre_tokenizer"] or {"type": "none"})
    name = _PRE_TOKENIZERS.get((parts, bool(model.get("ignore_merges"))))
    if name is None:
        raise UnsupportedError(
            f"llama.cpp has no name for this tokenizer's way to split text, {list(parts)}"
            f"{' without merging whole words' if model.get('ignore_merges') else ''}. {REMEDY}"
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
