"""What dense and pruned models say to the same prompts, and how far apart their predictions are."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from stages.architecture import Architecture
from stages.config.params import AnswersSection
from stages.evaluate.network.batch import Batch
from stages.evaluate.network.decoder import Decoder
from stages.evaluate.network.weights import PrunedWeights, ready
from stages.evaluate.results.errors import standard_error
from stages.evaluate.text.prompts import chats, prompt_tokens, stops
from stages.evaluate.text.selection import Selection
from stages.evaluate.workbench import Workbench
from stages.export.results.final_table import Answers
from stages.progress import Progress
from stages.sample.designs import DENSE

CONVERSATIONS = "conversations of its own"
"""What stands beside the names of texts: those have no spaces."""
AT_ONCE = 256
"""Tokens whose distributions over the vocabulary are held at once."""


def answers(
    bench: Workbench, asked: AnswersSection, selection: Selection, contenders: Mapping[str, PrunedWeights]
) -> Answers:
    """The dense model's answers and the `contenders`', and their divergences on the selection's windows.

    And on the conversations that the dense model wrote, and that calibrated nothing, where it wrote some.

    One model is held beside the dense one at a time, and of each window the dense model's hidden states.
    """
    loaded, dense = bench.checkpoint, bench.network
    whole = dense.shape.dense()
    prompts = [prompt_tokens(loaded.tokenizer, prompt) for prompt in asked.prompts]
    ends = stops(loaded.tokenizer, loaded.generation_config)
    steps = max(0, min(asked.tokens, loaded.context_tokens - max(map(len, prompts))))
    windows = [(name, row, 0) for name, rows in selection.windows.items() for row in rows.tokens]
    windows += _conversations(bench)
    known = [last_states(dense, whole, row, start) for _, row, start in windows]
    texts: dict[str, list[str]] = {}
    samples: dict[str, dict[str, list[float]]] = {}
    for name, weights in Progress([(DENSE, None), *contenders.items()], desc="answers", unit="model"):
        network, architecture = (
            (dense, whole) if weights is None else (ready(weights, dense), weights.architecture)
        )
        found = greedy(network, architecture, prompts, steps, ends)
        texts[name] = [str(t) for t in loaded.tokenizer.batch_decode(found, skip_special_tokens=True)]
        if weights is not None:
            for (text, row, start), states in zip(windows, known, strict=True):
                others = last_states(network, architecture, row, start)
                value = divergence(dense, states, network, others)
                samples.setdefault(name, {}).setdefault(text, []).append(value)
        del network  # before the next is made
    count = len(bench.conversations.report)
    chat = " in the model's chat template" if chats(loaded.tokenizer) else ""
    words = (
        f"Each prompt{chat}, answered greedily: always the likeliest next token, at most {asked.tokens} of "
        f"them. Divergence on {asked.windows} windows of each text"
        f" of the report part{f', and on {count} conversations of its own' if count else ''}."
    )
    means = {n: {t: sum(values) / len(values) for t, values in by.items()} for n, by in samples.items()}
    errors = {n: {t: standard_error(values) for t, values in by.items()} for n, by in samples.items()}
    return Answers(asked.prompts, texts, means, errors, words)


def greedy(
    network: Decoder,
    architecture: Architecture,
    prompts: Sequence[Sequence[int]],
    steps: int,
    stops: Collection[int],
) -> list[list[int]]:
    """What follows each prompt, always by the likeliest token: at most `steps`, up to a stop.

    All prompts run at once and whole, without a cache: tokens behind a sequence's end change nothing in it.
    """
    rows, done = [list(prompt) for prompt in prompts], [False] * len(prompts)
    for _ in range(steps):
        if all(done):
            break
        longest = max(map(len, rows))
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=network.device)
        ends = torch.tensor([len(row) - 1 for row in rows], device=network.device)
        with torch.inference_mode():
            hidden, _ = network.hidden_states(architecture, Batch.unasked(tokens))
            last = hidden[torch.arange(len(rows), device=network.device), ends]
            likeliest = network.logits(last).argmax(-1).tolist()
        for place, token in enumerate(likeliest):
            done[place] = done[place] or token in stops
            if not done[place]:
                rows[place].append(token)
    return [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]


def _conversations(bench: Workbench) -> list[tuple[str, Tensor, int]]:
    """The conversations that calibrated nothing, each with where it is no more what all begin with."""
    tokenizer, found = bench.checkpoint.tokenizer, []
    opening = tokenizer(bench.conversations.opening, add_special_tokens=False)["input_ids"]
    for text in bench.conversations.report:
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"][: bench.checkpoint.context_tokens]
        found.append((CONVERSATIONS, torch.tensor(tokens), len(opening)))
    return found


def last_states(network: Decoder, architecture: Architecture, tokens: Tensor, start: int = 0) -> Tensor:
    """The last hidden states (L - start, D) of a sequence (L,) from a place on, on the CPU."""
    with torch.inference_mode():
        hidden, _ = network.hidden_states(architecture, Batch.unasked(tokens[None].to(network.device)))
        return hidden[0, start:].cpu()


def divergence(dense: Decoder, states: Tensor, other: Decoder, others: Tensor) -> float:
    """The mean Kullback-Leibler divergence of `other` from `dense`, in nats a token.

    From the last hidden states (L, D) of both, some tokens at once: logits are as wide as the vocabulary.
    """
    total = 0.0
    with torch.inference_mode():
        for p_rows, q_rows in zip(states.split(AT_ONCE), others.split(AT_ONCE), strict=True):
            p, q = (
                torch.log_softmax(network.logits(rows.to(network.device)).float(), -1)
                for network, rows in ((dense, p_rows), (other, q_rows))
            )
            total += float((p.exp() * (p - q)).sum())
    return total / len(states)
