"""Perplexity of a text: windows of tokens, and the log-likelihood of each next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.config.params import TextProtocol
from stages.evaluate.network.batch import Batch
from stages.evaluate.text.corpora import Document
from stages.files import InputError
from stages.metrics.metric import TextLikelihoods
from stages.metrics.registered import of_text, score

MARGIN = 64
"""Tokens by which a text that is cut goes on: its last ones may depend on what would follow."""


@dataclass(frozen=True)
class Windows:
    """Windows of a text: tokens (W, L), of which the last `predicted` of each window are predicted.

    `size_bytes` counts the UTF-8 bytes of text that the predicted tokens of all windows cover. A
    character that several tokens share counts with the one that completes it. `bos_tokens` counts
    the BOS put in: none, one before the text, or one a window.
    """

    tokens: Tensor
    predicted: int
    size_bytes: int
    bos_tokens: int


def windows(
    documents: Sequence[Document],
    tokenizer: Any,
    protocol: TextProtocol,
    count: int | None,
    where: str,
    keys: str = "windows or sequence_length",
) -> Windows:
    """The first `count` windows of the documents, or all (None).

    `where` names the corpus and part in errors, `keys` what asks for so much.

    Raises:
        InputError: the text is too short for that many windows or for one, or the tokenizer has
            no BOS where one is asked for.
    """
    bos = _bos(tokenizer, protocol, where)
    length, stride = protocol.sequence_length, protocol.stride
    own = length - (protocol.bos == "window")  # tokens of text in a window
    needed = None if count is None else own + (count - 1) * stride
    stream, edges = _tokenised(documents, tokenizer, protocol.join, needed)
    if protocol.bos == "tokenizer":
        stream, edges = bos + stream, np.concatenate((np.zeros(len(bos), dtype=np.int64), edges))
    there = max(0, (len(stream) - own) // stride + 1)
    if there < (count or 1):
        raise InputError(
            f"{where} has {len(stream)} tokens; {count or 1} windows of {length} need {needed or own}. "
            f"Lower {keys}, or name a longer text"
        )
    starts = np.arange(count or there) * stride
    tokens = torch.tensor(stream).unfold(0, own, stride)[: len(starts)].contiguous()
    if protocol.bos == "window":
        tokens = torch.cat((torch.tensor(bos).expand(len(starts), 1), tokens), dim=1)
    predicted, stops = min(stride, length - 1), starts + own
    covered = int((edges[stops] - edges[stops - predicted]).sum())
    return Windows(tokens, predicted, covered, len(bos) * (len(starts) if protocol.bos == "window" else 1))


def check_context(protocol: TextProtocol, context_tokens: int) -> None:
    """Raise InputError if windows are longer than what the model was made for."""
    if protocol.sequence_length > context_tokens:
        raise InputError(
            f"sequence_length is {protocol.sequence_length}, and the model's context has {context_tokens} "
            "tokens; set a sequence_length of at most that in params.yaml, or another protocol"
        )


def tokenizer_bos(tokenizer: Any) -> list[int]:
    """The BOS that a tokenizer by itself puts before a text: one token or none."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("").get("input_ids", [])[:1] == [bos] else []


def _bos(tokenizer: Any, protocol: TextProtocol, where: str) -> list[int]:
    if protocol.bos != "window":
        return tokenizer_bos(tokenizer) if protocol.bos == "tokenizer" else []
    if tokenizer.bos_token_id is None:
        raise InputError(
            f"{where} is measured with bos: window, and the model's tokenizer has no BOS; "
            "use bos: tokenizer or none"
        )
    return [tokenizer.bos_token_id]


def _tokenised(
    documents: Sequence[Document], tokenizer: Any, join: str, needed: int | None
) -> tuple[list[int], NDArray[np.int64]]:
    """Tokens of the joined documents without BOS, and the bytes of text before each and after all.

    A long corpus, be it one line, is not tokenised whole for its first `needed` tokens. A unigram model alone
    could divide a word of more than `MARGIN` tokens otherwise where it is cut.
    """
    whole = sum(len(document.text) + len(join) for document in documents)
    characters = whole if needed is None else 6 * (needed + MARGIN)  # English has four or five a token
    while True:
        text = _head(documents, join, characters)
        encoded = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
        tokens = encoded["input_ids"]
        if characters >= whole or len(tokens) >= (needed or 0) + MARGIN:
            return tokens, _edges(text, np.array(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2))
        characters *= 2


def _head(documents: Sequence[Document], join: str, characters: int) -> str:
    """The first characters of the joined documents."""
    starts = accumulate((len(document.text) + len(join) for document in documents), initial=0)
    begun = [document.text for document, start in zip(documents, starts, strict=False) if start < characters]
    return join.join(begun)[:characters]


def _edges(text: str, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bytes of `text` before each token and after all (N + 1,), from the tokens' characters (N, 2).

    Where two tokens share a character, it is behind their edge; where the tokenizer says of
    neither that it holds a character, such as a space, it is behind it too.
    """
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (points >= 0x80) + (points >= 0x800).astype(np.int64) + (points >= 0x10000)
    size = np.concatenate((np.zeros(1, dtype=np.int64), widths.cumsum()))  # bytes before a character
    if not len(offsets):
        return np.zeros(1, dtype=np.int64)
    inner = np.minimum(offsets[:-1, 1], offsets[1:, 0])
    characters = np.concatenate(([0], np.maximum.accumulate(inner), [len(text)]))
    return np.asarray(size[characters], dtype=np.int64)


def batches(rows: Tensor, tokens_per_batch: int, predicted: int | None = None) -> list[Batch]:
    """Batches that predict the last `predicted` tokens of each window of rows (W, L).

    By default all that have a token before them.
    """
    length = rows.shape[1]
    size = max(1, tokens_per_batch // length)
    result = []
    for part in rows.split(size):
        places = torch.arange(part.numel()).view_as(part)
        at = places[:, length - 1 - (predicted or length - 1) : -1].flatten()
        positions = torch.arange(length).expand_as(part)
        result.append(Batch(part, positions, None, at, part.flatten()[at + 1]))
    return result


def scores(
    log_likelihoods: Tensor, count: int, size_bytes: int, text: str = ""
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Every metric of a text, from the log-likelihoods (N,) of the predicted tokens of `count` windows.

    Returns their values by key, and the samples, one a window, that they are means of, for standard
    errors and paired comparisons.
    """
    found = TextLikelihoods(log_likelihoods.double().view(count, -1), size_bytes)
    return score(of_text(text), found)
