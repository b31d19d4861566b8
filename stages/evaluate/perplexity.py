"""Perplexity of a text: windows of tokens, and the log-likelihood of each next token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stages.evaluate.corpora import Document
from stages.evaluate.elastic import Batch
from stages.files import InputError

JOIN = "\n\n"


def windows(
    documents: Sequence[Document], tokenizer: Any, sequence_length: int, count: int, where: str
) -> Tensor:
    """The first `count` windows (count, sequence_length) of the documents.

    Documents are joined with a blank line and tokenised without BOS; windows do not overlap and
    the tail is dropped. `where` names the corpus and part in errors.

    Raises:
        InputError: the text is too short for that many windows.
    """
    needed = sequence_length * count
    tokens: list[int] = []
    text, enough = "", 4 * needed
    for index, document in enumerate(documents):
        text += (JOIN if index else "") + document.text
        # A long corpus is not tokenised whole for its first windows, but what is tokenised is joined.
        if len(text) >= enough or index == len(documents) - 1:
            tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            enough = 2 * len(text)
        if len(tokens) >= needed:
            break
    if len(tokens) < needed:
        raise InputError(
            f"{where} has {len(tokens)} tokens; {count} windows of {sequence_length} need {needed}. "
            "Lower windows or sequence_length, or name a longer text"
        )
    return torch.tensor(tokens[:needed]).view(count, sequence_length)


def batches(rows: Tensor, tokens_per_batch: int) -> list[Batch]:
    """Batches that predict every token of each window but its first."""
    length = rows.shape[1]
    size = max(1, tokens_per_batch // length)
    result = []
    for part in rows.split(size):
        at = torch.arange(part.numel()).view_as(part)[:, :-1].flatten()
        positions = torch.arange(length).expand_as(part)
        result.append(Batch(part, positions, None, at, part.flatten()[at + 1]))
    return result


def scores(log_likelihoods: Tensor, count: int) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Perplexity of `count` windows from the log-likelihoods (N,) of their predicted tokens.

    Returns ``ppl`` and ``log_ppl`` (nats a token), and the log perplexity of each window, for
    standard errors and paired comparisons.
    """
    per_window = -log_likelihoods.double().view(count, -1).mean(1)
    log_ppl = float(per_window.mean())
    return {"ppl": math.exp(log_ppl), "log_ppl": log_ppl}, {"log_ppl": per_window.tolist()}
