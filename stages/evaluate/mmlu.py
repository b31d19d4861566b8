"""MMLU, zero-shot by the likelihood of each answer's text.

The format is lm-eval's ``mmlu_continuation``: a line that names the subject, ``Question: …``,
``Answer:``, and each choice's text as a continuation; the most likely choice is the model's
answer (Hendrycks et al. 2021, arXiv 2009.03300; Brown et al. 2020, arXiv 2005.14165, 2.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stages.evaluate.corpora import Question
from stages.evaluate.elastic import Batch
from stages.files import InputError


@dataclass(frozen=True)
class Item:
    """A tokenised question: the prompt, and the four choices as continuations of it."""

    id: str
    prompt: list[int]
    choices: list[list[int]]
    answer: int

    @property
    def length(self) -> int:
        """Tokens of the packed sequence; a choice's last token is predicted, never read."""
        return len(self.prompt) + sum(len(choice) - 1 for choice in self.choices)


def prompt(question: Question) -> str:
    subject = question.subject.replace("_", " ")
    return (
        f"The following are questions (with answers) about {subject}.\n\n"
        f"Question: {question.question.strip()}\nAnswer:"
    )


def items(questions: Sequence[Question], tokenizer: Any, count: int, longest: int, where: str) -> list[Item]:
    """The first `count` questions whose packed sequence has at most `longest` tokens.

    Raises:
        InputError: there are none.
    """
    chosen = []
    for question in questions:
        item = _item(question, tokenizer)
        if item.length <= longest:
            chosen.append(item)
        if len(chosen) == count:
            break
    if not chosen:
        raise InputError(
            f"{where} has no question of at most {longest} tokens among {len(questions)}; "
            "raise question_tokens or name another corpus"
        )
    return chosen


def _item(question: Question, tokenizer: Any) -> Item:
    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    text = prompt(question)
    context = encode(text)
    # The continuation is what the whole has beyond the context, as lm-eval splits it.
    choices = [encode(f"{text} {choice}")[len(context) :] for choice in question.choices]
    return Item(question.id, context, choices, question.answer)


def batches(chosen: Sequence[Item], tokens_per_batch: int, pad: int = 0) -> list[Batch]:
    """Batches that predict every token of every choice, the prompt run once for all four.

    A row holds the prompt and then the choices one after another; each choice's positions go on
    from the prompt's end and its mask shows it the prompt and itself alone. `chosen` is taken in
    the order given: sort it by length first, so that little is padded. Targets follow the order
    of items, choices, tokens.
    """
    result = []
    rows: list[Item] = []
    for item in [*chosen, None]:
        longest = max((r.length for r in [*rows, *([item] if item else [])]), default=0)
        if rows and (item is None or longest * (len(rows) + 1) > tokens_per_batch):
            result.append(_packed(rows, pad))
            rows = []
        if item is not None:
            rows.append(item)
    return result


def _packed(rows: Sequence[Item], pad: int) -> Batch:
    length = max(item.length for item in rows)
    tokens = torch.full((len(rows), length), pad)
    positions = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.eye(length, dtype=torch.bool).repeat(len(rows), 1, 1)  # padding sees itself: no empty row
    at: list[int] = []
    targets: list[int] = []
    for row, item in enumerate(rows):
        end = len(item.prompt)
        tokens[row, :end] = torch.tensor(item.prompt)
        positions[row, :end] = torch.arange(end)
        mask[row, :end, :end] = torch.ones(end, end, dtype=torch.bool).tril()
        start = end
        for choice in item.choices:
            stop = start + len(choice) - 1
            tokens[row, start:stop] = torch.tensor(choice[:-1], dtype=torch.long)
            positions[row, start:stop] = torch.arange(end, end + stop - start)
            mask[row, start:stop, :end] = True
            mask[row, start:stop, start:stop] = torch.ones(
                stop - start, stop - start, dtype=torch.bool
            ).tril()
            at += [row * length + place for place in (end - 1, *range(start, stop))]
            targets += choice
            start = stop
    return Batch(tokens, positions, mask[:, None], torch.tensor(at), torch.tensor(targets))


def scores(
    log_likelihoods: Tensor, chosen: Sequence[Item]
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Accuracy and the mean log-likelihood (nats a question) of the right answer's text.

    `log_likelihoods` (N,) follow the order of items, choices, tokens. Returns both means, and
    both values of each question.
    """
    sizes = [len(choice) for item in chosen for choice in item.choices]
    sums = torch.stack([part.double().sum() for part in log_likelihoods.split(sizes)]).view(-1, 4)
    answers = torch.tensor([item.answer for item in chosen], device=sums.device)
    values = {
        "accuracy": (sums.argmax(1) == answers).double(),
        "log_likelihood": sums.gather(1, answers[:, None]).flatten(),
    }
    return {k: float(v.mean()) for k, v in values.items()}, {k: v.tolist() for k, v in values.items()}
