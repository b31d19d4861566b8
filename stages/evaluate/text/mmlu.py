"""MMLU (Hendrycks et al. 2021, arXiv 2009.03300) in two formats, prompts as lm-eval has them.

``likelihood`` is zero-shot, by the likelihood of each answer's text (lm-eval's
``mmlu_continuation``; Brown et al. 2020, arXiv 2005.14165, 2.4). ``letter`` is the original format:
five answered questions of the same subject, then the question, and the likelihood of " A" to " D"
(lm-eval's ``mmlu``). The likeliest choice is the model's answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from stages.evaluate.network.batch import Batch
from stages.evaluate.text.corpora import Question
from stages.evaluate.text.perplexity import tokenizer_bos
from stages.files import InputError
from stages.metrics.metric import QuestionLikelihoods
from stages.metrics.registered import of_questions, score

LETTERS = "ABCD"
END = "Answer:"
SHOTS = 5
ROW_TOKENS = 2048
"""Tokens of a row in which prompts share their beginning: more would share more, and attend to more."""


@dataclass(frozen=True)
class Item:
    """A tokenised question: the prompt, and the four choices as continuations of it."""

    id: str
    subject: str
    prompt: list[int]
    choices: list[list[int]]
    answer: int
    lengths: Sequence[int]
    """Characters of each choice's text."""
    examples: int
    """Answered questions in the prompt."""

    @classmethod
    def of(
        cls,
        question: Question,
        prompt: list[int],
        choices: list[list[int]],
        texts: Sequence[str],
        examples: int,
    ) -> Item:
        """A question in the tokens of a format; `texts` are its choices in it."""
        lengths = list(map(len, texts))
        return cls(question.id, question.subject, prompt, choices, question.answer, lengths, examples)

    @property
    def length(self) -> int:
        """Tokens of the packed sequence; a choice's last token is predicted, never read."""
        return len(self.prompt) + sum(len(choice) - 1 for choice in self.choices)


def prompt(question: Question) -> str:
    """The zero-shot prompt; each choice's text, after a space, continues it."""
    return (
        f"The following are questions (with answers) about {_subject(question)}.\n\n"
        f"Question: {question.question.strip()}\n{END}"
    )


def letter_prompt(question: Question, examples: Sequence[Question]) -> str:
    """The few-shot prompt; each choice's letter, after a space, continues it."""
    header = f"The following are multiple choice questions (with answers) about {_subject(question)}.\n\n"
    answered = [f"{_lettered(example)} {LETTERS[example.answer]}\n\n" for example in examples]
    return header + "".join(answered) + _lettered(question)


def _lettered(question: Question) -> str:
    choices = [f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, question.choices, strict=True)]
    return f"{question.question.strip()}\n{''.join(choices)}{END}"


def _subject(question: Question) -> str:
    return question.subject.replace("_", " ")


def choose(
    questions: Sequence[Question], tokenizer: Any, count: int | None, longest: int | None, where: str
) -> list[Question]:
    """The first `count` questions, or all (None), whose zero-shot sequence has at most `longest` tokens.

    Raises:
        InputError: there are none.
    """
    chosen: list[Question] = []
    for question in questions:
        if len(chosen) == count:
            break
        if longest is None or likelihood_items([question], tokenizer)[0].length <= longest:
            chosen.append(question)
    if not chosen:
        raise InputError(
            f"{where} has no question of at most {longest} tokens among {len(questions)}; "
            "raise question_tokens or name another corpus"
        )
    return chosen


def likelihood_items(questions: Sequence[Question], tokenizer: Any) -> list[Item]:
    """Questions in the zero-shot format."""
    texts = [prompt(question) for question in questions]
    contexts = _encoded(tokenizer, texts)
    whole = _encoded(
        tokenizer, [f"{t} {choice}" for t, q in zip(texts, questions, strict=True) for choice in q.choices]
    )
    items = []
    for index, (question, context) in enumerate(zip(questions, contexts, strict=True)):
        # The continuation is what the whole has beyond the context, as lm-eval splits it.
        choices = [tokens[len(context) :] for tokens in whole[4 * index : 4 * index + 4]]
        items.append(Item.of(question, context, choices, question.choices, 0))
    return items


def letter_items(
    questions: Sequence[Question], pool: Sequence[Question], tokenizer: Any, longest: int
) -> list[Item]:
    """Questions after up to five examples each, the first of its subject in `pool` but for itself.

    As in the original evaluation, the last examples are left out until prompt and answer have at
    most `longest` tokens, which is the model's context.
    """
    ordered = sorted(pool, key=lambda q: q.index)
    examples = [_examples(question, ordered) for question in questions]
    texts = [letter_prompt(*both) for both in zip(questions, examples, strict=True)]
    start, *letters = _encoded(tokenizer, [END, *(f"{END} {letter}" for letter in LETTERS)])
    choices = [letter[len(start) :] for letter in letters]
    most = longest - max(map(len, choices)) + 1
    items = []
    for question, shown, context in zip(questions, examples, _encoded(tokenizer, texts), strict=True):
        while shown and len(context) > most:
            shown = shown[:-1]
            (context,) = _encoded(tokenizer, [letter_prompt(question, shown)])
        items.append(Item.of(question, context, choices, LETTERS, len(shown)))
    return items


def _examples(question: Question, ordered: Sequence[Question]) -> list[Question]:
    same = (q for q in ordered if q.subject == question.subject and not _equal(q, question))
    return list(islice(same, SHOTS))


def _equal(one: Question, other: Question) -> bool:
    return (one.question.strip(), one.choices) == (other.question.strip(), other.choices)


def _encoded(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Tokens of each text, after the BOS where the tokenizer adds one. Together: much faster than apart."""
    bos = tokenizer_bos(tokenizer)
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [bos + tokens for tokens in encoded]


def batches(chosen: Sequence[Item], tokens_per_batch: int, pad: int = 0, shared: bool = False) -> list[Batch]:
    """Batches that predict every token of every choice, the prompt run once for all four.

    A row holds a prompt and then its choices one after another; each choice's positions go on
    from the prompt's end and its mask shows it the prompt and itself alone. With `shared`, neighbours
    of one subject stand in one row and run once what their prompts begin with alike. `chosen` is taken
    in the order given: sort it by length (by subject, if shared), so that little is padded (much is
    shared). Targets follow the order of items, choices, tokens.
    """
    result: list[Batch] = []
    waiting: list[_Row] = []
    for row in _rows(chosen) if shared else [_Row([item]) for item in chosen]:
        if waiting and max(r.length for r in [*waiting, row]) * (len(waiting) + 1) > tokens_per_batch:
            result.append(_packed(waiting, pad))
            waiting = []
        waiting.append(row)
    return [*result, _packed(waiting, pad)] if waiting else result


@dataclass(frozen=True)
class _Row:
    """Items side by side in one sequence, the first `shared` tokens of their prompts once."""

    items: list[Item]
    shared: int = 0

    @property
    def length(self) -> int:
        return self.shared + sum(item.length - self.shared for item in self.items)

    def joined(self, item: Item) -> _Row:
        """This row and one more item; each keeps at least its prompt's last token to itself."""
        first = self.items[0].prompt
        most = self.shared if len(self.items) > 1 else len(first) - 1
        most = min(most, len(item.prompt) - 1)
        same = next((i for i in range(most) if first[i] != item.prompt[i]), most)
        return _Row([*self.items, item], same)


def _rows(chosen: Sequence[Item]) -> list[_Row]:
    rows: list[_Row] = []
    for item in chosen:
        if rows and rows[-1].items[0].subject == item.subject:
            joined = rows[-1].joined(item)
            if joined.length <= ROW_TOKENS:
                rows[-1] = joined
                continue
        rows.append(_Row([item]))
    return rows


def _packed(rows: Sequence[_Row], pad: int) -> Batch:
    length = max(row.length for row in rows)
    tokens = torch.full((len(rows), length), pad)
    positions = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.eye(length, dtype=torch.bool).repeat(len(rows), 1, 1)  # padding sees itself: no empty row
    at: list[int] = []
    targets: list[int] = []
    for index, row in enumerate(rows):

        def write(part: Sequence[int], start: int, position: int, index: int = index) -> int:
            """Put tokens at `start` that see each other causally; returns where they end."""
            stop = start + len(part)
            tokens[index, start:stop] = torch.tensor(part, dtype=torch.long)
            positions[index, start:stop] = torch.arange(position, position + len(part))
            mask[index, start:stop, start:stop] = torch.ones(len(part), len(part), dtype=torch.bool).tril()
            return stop

        shared = write(row.items[0].prompt[: row.shared], 0, 0)
        start = shared
        for item in row.items:
            end = write(item.prompt[shared:], start, shared)
            mask[index, start:end, :shared] = True
            stop = end
            for choice in item.choices:
                own, stop = stop, write(choice[:-1], stop, len(item.prompt))
                mask[index, own:stop, :shared] = True
                mask[index, own:stop, start:end] = True
                at += [index * length + place for place in (end - 1, *range(own, stop))]
                targets += choice
            start = stop
    return Batch(tokens, positions, mask[:, None], torch.tensor(at), torch.tensor(targets))


def scores(
    log_likelihoods: Tensor, chosen: Sequence[Item], questions: str = ""
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Every metric of questions, from the log-likelihoods (N,) in the order of items, choices, tokens.

    Returns their values by key, and the samples, one a question, that they are means of.
    """
    sums = choice_log_likelihoods(log_likelihoods, chosen)
    answers = torch.tensor([item.answer for item in chosen], device=sums.device)
    lengths = torch.tensor([item.lengths for item in chosen], device=sums.device)
    return score(of_questions(questions), QuestionLikelihoods(sums, answers, lengths))


def choice_log_likelihoods(log_likelihoods: Tensor, chosen: Sequence[Item]) -> Tensor:
    """Log-likelihoods (questions, 4) of each question's choices, in float64."""
    sizes = [len(choice) for item in chosen for choice in item.choices]
    return torch.stack([part.double().sum() for part in log_likelihoods.split(sizes)]).view(-1, 4)
