"""Fields of a GGUF file's header, and those that every kind of tokenizer has."""

from __future__ import annotations

from typing import Any, NamedTuple

from gguf import GGUFValueType, Keys, TokenType

REMEDY = "Name the same model as a GGUF file in model.source, and its own tokenizer fields are copied"
_SPECIAL = {"bos": Keys.Tokenizer.BOS_ID, "eos": Keys.Tokenizer.EOS_ID}
_SPECIAL |= {"unk": Keys.Tokenizer.UNK_ID, "pad": Keys.Tokenizer.PAD_ID}


class UnsupportedError(ValueError):
    """llama.cpp cannot hold this model or tokenizer exactly; the message names what it lacks."""


class Field(NamedTuple):
    """A value of a GGUF file's header; `element` is the type of an array's items."""

    value: Any
    type: GGUFValueType
    element: GGUFValueType | None = None


Fields = dict[str, Field]


def special(tokenizer: Any) -> Fields:
    """The special tokens of a transformers tokenizer, and which it adds by itself.

    Raises:
        UnsupportedError: it has no end-of-sequence token.
    """
    fields = {}
    if tokenizer.eos_token_id is None:
        raise UnsupportedError(
            "the tokenizer has no end-of-sequence token; llama.cpp would take another token for it"
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
    return fields


def check_added(content: dict[str, Any]) -> None:
    """Raise UnsupportedError for an added token that takes text around it along, which llama.cpp's do not."""
    for token in content["added_tokens"]:
        for flag in ("lstrip", "rstrip", "single_word"):
            if token.get(flag):
                raise UnsupportedError(
                    f"the added token {token['content']!r} is matched with {flag}, which llama.cpp has not"
                )


def tokens(vocabulary: dict[str, int], added: list[dict[str, Any]], rows: int) -> tuple[list[str], list[int]]:
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


def chat_templates(templates: str | dict[str, str] | None) -> Fields:
    named = {"default": templates} if isinstance(templates, str) else templates or {}
    others = sorted(name for name in named if name != "default")
    text = GGUFValueType.STRING
    fields = {f"{Keys.Tokenizer.CHAT_TEMPLATE}.{name}": Field(named[name], text) for name in others}
    if others:
        fields[Keys.Tokenizer.CHAT_TEMPLATES] = Field(others, GGUFValueType.ARRAY, text)
    if "default" in named:
        fields[Keys.Tokenizer.CHAT_TEMPLATE] = Field(named["default"], text)
    return fields
