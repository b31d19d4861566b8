"""What dense and pruned models say to the same prompts, and how far apart their predictions are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stages.architecture import Architecture
from stages.config.params import AnswersSection
from stages.evaluate.network.batch import Batch
from stages.evaluate.network.decoder import Decoder
from stages.evaluate.network.weights import PrunedWeights, ready
from stages.evaluate.results.errors import standard_error
from stages.evaluate.text.selection import Selection
from stages.evaluate.workbench import Workbench
from stages.export.results.final_table import Answers
from stages.progress import Progress
from stages.sample.designs import DENSE

LogProbabilities = Callable[[Tensor], Tensor]


def answers(
    bench: Workbench, asked: AnswersSection, selection: Selection, contenders: Mapping[str, PrunedWeights]
) -> Answers:
    """The dense model's answers and the `contenders`', and their divergences on the selection's windows.

    One model is held beside the dense one at a time.
    """
    loaded, shape = bench.checkpoint, bench.network.shape
    prompts = [prompt_tokens(loaded.tokenizer, prompt) for prompt in asked.prompts]
    stops = _stops(loaded.tokenizer, loaded.generation_config)
    room = loaded.context_tokens - max(map(len, prompts))
    steps = max(0, min(asked.tokens, room))
    windows = {name: list(rows.tokens) for name, rows in selection.windows.items()}
    texts: dict[str, list[str]] = {}
    divergence: dict[str, dict[str, float]] = {}
    errors: dict[str, dict[str, float]] = {}

    def said(network: Decoder, architecture: Architecture) -> list[str]:
        found = greedy(network, architecture, prompts, steps, stops)
        return [str(t) for t in loaded.tokenizer.batch_decode(found, skip_special_tokens=True)]

    dense: dict[str, list[Tensor]] = {}
    for name, architecture, weights in Progress(
        [(DENSE, shape.dense(), None), *((n, w.architecture, w) for n, w in contenders.items())],
        desc="answers", unit="model",
    ):  # fmt: skip
        network = bench.network if weights is None else ready(weights, bench.network)
        texts[name] = said(network, architecture)
        logs = {
            t: [log_probabilities(network, architecture, row) for row in rows] for t, rows in windows.items()
        }
        if weights is None:
            dense = logs
            continue
        for text, found in logs.items():
            each = [divergences(p, q) for p, q in zip(dense[text], found, strict=True)]
            divergence.setdefault(name, {})[text] = sum(each) / len(each)
            errors.setdefault(name, {})[text] = standard_error(each)
    chat = " in the model's chat template" if _chats(loaded.tokenizer) else ""
    words = (
        f"Each prompt{chat}, answered greedily: always the likeliest next token, at most {asked.tokens} of "
        f"them. Divergence on {asked.windows} windows of each text."
    )
    return Answers(asked.prompts, texts, divergence, errors, words)


def prompt_tokens(tokenizer: Any, prompt: str) -> list[int]:
    """A prompt's tokens: as a user's turn of a chat where the tokenizer has a template, else as it stands."""
    if _chats(tokenizer):
        turn = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return list(tokenizer(prompt)["input_ids"])


def _chats(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def _stops(tokenizer: Any, generation: Any) -> set[int]:
    """The tokens that end an answer."""
    told = getattr(generation, "eos_token_id", None)
    found = [*(told if isinstance(told, list) else [told]), tokenizer.eos_token_id]
    return {int(token) for token in found if token is not None}


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


def log_probabilities(network: Decoder, architecture: Architecture, tokens: Tensor) -> Tensor:
    """Natural-log probabilities (L, V) in float32 after each token of a sequence (L,), on the CPU."""
    with torch.inference_mode():
        hidden, _ = network.hidden_states(architecture, Batch.unasked(tokens[None].to(network.device)))
        return torch.log_softmax(network.logits(hidden[0]).float(), -1).cpu()


def divergences(dense: Tensor, other: Tensor) -> float:
    """The mean Kullback-Leibler divergence of `other` from `dense`, log-probabilities (L, V), in nats."""
    return float((dense.exp() * (dense - other)).sum(-1).mean())
