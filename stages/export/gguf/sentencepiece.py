"""A BPE of SentencePiece (Llama 2, Mistral) as the fields of llama.cpp's tokenizer model `llama`.

transformers keeps such a tokenizer as an ordered list of merges, llama.cpp as a score for every token: it
merges the two neighbours whose text together is the token of the highest score (src/llama-vocab.cpp,
`llm_tokenizer_spm`), as SentencePiece does. The two are the same where every way to put a token together
from two others is a merge, and all merges that make one token stand together. That is checked, and the
place of a token's first merge becomes its score. (Of two overlapping ways to make the same token llama.cpp
takes the left one, transformers the earlier merge; no text was found on which that matters.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gguf import GGUFValueType, Keys, TokenType

from stages.export.gguf.fields import REMEDY, Field, Fields, UnsupportedError, check_added, tokens

SPACE = "▁"
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_PREPEND = {"type": "Prepend", "prepend": SPACE}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_NORMALIZERS: list[tuple[list[dict[str, Any]], str]] = [
    ([_PREPEND, _REPLACE], "normalizer"),
    ([_REPLACE], "never"),
]


def fields(content: dict[str, Any], unknown: int | None, rows: int) -> Fields:
    """The fields of a tokenizer.json whose BPE falls back to bytes, for a model of so many embedding rows.

    Raises:
        UnsupportedError: llama.cpp would tokenise otherwise, and `departures` has no words for it.
    """
    model = content["model"]
    unusual = [
        key
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
        if model.get(key)
    ]
    if model["type"] != "BPE" or unusual:
        raise UnsupportedError(
            f"the tokenizer is a {model['type']} with byte fallback and {unusual or 'nothing unusual'}; "
            f"expected a BPE of SentencePiece. {REMEDY}"
        )
    prefix = _prefix(content)
    _check_added(content, prefix)
    names, types = tokens(model["vocab"], content["added_tokens"], rows)
    if lacking := [name for name in _BYTES if name not in model["vocab"]]:
        raise UnsupportedError(
            f"the tokenizer has no token {lacking[0]} (of {len(lacking)} bytes), so that some text has none"
        )
    for name in _BYTES:
        types[model["vocab"][name]] = int(TokenType.BYTE)
    if unknown is not None:
        types[unknown] = int(TokenType.UNKNOWN)
    scores = _scores(content)
    text, array = GGUFValueType.STRING, GGUFValueType.ARRAY
    return {
        Keys.Tokenizer.MODEL: Field("llama", text),
        Keys.Tokenizer.PRE: Field("default", text),
        Keys.Tokenizer.LIST: Field(names, array, text),
        Keys.Tokenizer.SCORES: Field([scores.get(n, 0.0) for n in names], array, GGUFValueType.FLOAT32),
        Keys.Tokenizer.TOKEN_TYPE: Field(types, array, GGUFValueType.INT32),
        Keys.Tokenizer.ADD_PREFIX: Field(prefix != "never", GGUFValueType.BOOL),
    }


def departures(content: dict[str, Any]) -> list[str]:
    """What llama.cpp, as SentencePiece itself, tokenises otherwise than transformers."""
    prefix, found = _prefix(content), []
    if prefix in ("always", "first"):
        found.append(
            "text that begins with a space: llama.cpp puts one more before it, transformers does not"
        )
    if prefix == "first":
        found.append("text after a control token: llama.cpp puts a space before it, transformers does not")
    return found


def _prefix(content: dict[str, Any]) -> str:
    """The moments when a space is put before text: the "normalizer", "always", "first" or "never".

    Raises:
        UnsupportedError: the text is changed or divided in another way.
    """
    normalizer, pre = content["normalizer"], content["pre_tokenizer"]
    steps = normalizer["normalizers"] if (normalizer or {}).get("type") == "Sequence" else [normalizer]
    for known, prefix in _NORMALIZERS:
        if steps == known and pre is None:
            return prefix
    metaspace = {"type": "Metaspace", "replacement": SPACE, "split": False}
    if normalizer is None and pre is not None and metaspace.items() <= pre.items():
        return str(pre["prepend_scheme"])
    kinds = [step["type"] for step in (*steps, pre) if step is not None]
    raise UnsupportedError(
        f"llama.cpp cannot prepare text as this SentencePiece tokenizer does, by {kinds or 'nothing'}. "
        f"{REMEDY}"
    )


def _check_added(content: dict[str, Any], prefix: str) -> None:
    check_added(content)
    for token in content["added_tokens"]:
        if prefix == "normalizer" and token["normalized"]:
            raise UnsupportedError(
                f"the added token {token['content']!r} is found in normalised text, so that no space is put "
                "before what follows it; llama.cpp puts one"
            )


def _scores(content: dict[str, Any]) -> dict[str, float]:
    """A score for every token that merges make: the earlier, the higher.

    Raises:
        UnsupportedError: no scores give the same merges.
    """
    pairs = [tuple(p.split(" ")) if isinstance(p, str) else tuple(p) for p in content["model"]["merges"]]
    scores: dict[str, float] = {}
    last = ""
    for rank, (left, right) in enumerate(pairs):
        made = left + right
        if made in scores and made != last:
            raise UnsupportedError(
                f"the merges that make {made!r} do not stand together, so that no score says when it is "
                f"made: these are no merges of SentencePiece. {REMEDY}"
            )
        scores.setdefault(made, -float(rank))
        last = made
    known = set(pairs)
    added = {token["content"] for token in content["added_tokens"]}
    vocabulary = content["model"]["vocab"].keys() - added
    for name in vocabulary:
        for left, right in _divisions(name, vocabulary):
            if (left, right) not in known:
                raise UnsupportedError(
                    f"{left!r} and {right!r} make the token {name!r} in llama.cpp, and no merge does so: "
                    f"these are no merges of SentencePiece. {REMEDY}"
                )
    return scores


def _divisions(name: str, vocabulary: set[str]) -> Iterator[tuple[str, str]]:
    """The ways to put a token together from two that can stand beside each other: tokens or characters."""
    for place in range(1, len(name)):
        parts: Sequence[str] = (name[:place], name[place:])
        if all(len(part) == 1 or part in vocabulary for part in parts):
            yield parts[0], parts[1]
