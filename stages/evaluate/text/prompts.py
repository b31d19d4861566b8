"""A chat as a model's tokenizer writes it: prompts as it is asked them, and what stands around each turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from stages.files import InputError

T = TypeVar("T")
_TURN, _ANSWER = "⟨turn⟩", "⟨answer⟩"
"""Turns that no template says itself."""
_TODAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}{{ '' }}"
"""Some templates tell the date: one that stays, so that what calibrates is the same tomorrow. The empty word
keeps a line break at a template's start."""


def chats(tokenizer: Any) -> bool:
    """Whether the tokenizer has a template of chats."""
    return bool(getattr(tokenizer, "chat_template", None))


def chat(tokenizer: Any, turns: Sequence[str], asks: bool = False) -> str:
    """A chat in the tokenizer's template, the user's turn first; as far as an answer begins if it `asks`.

    A model that can think before it answers does not: its thoughts would be cut before they come to anything.
    """
    roles = ("user", "assistant") * len(turns)
    messages = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]
    text = tokenizer.apply_chat_template(
        messages,
        chat_template=_TODAY + tokenizer.get_chat_template(),
        tokenize=False,
        add_generation_prompt=asks,
        enable_thinking=False,
    )
    return str(text)


@dataclass(frozen=True)
class Template:
    """What stands before a user's first turn, between it and the answer, and after the answer."""

    opening: str
    between: str
    ending: str


def template_of(tokenizer: Any) -> Template:
    """The template of a chat of one turn and its answer.

    Raises:
        ValueError: it leaves out one of the two.
    """
    opening, asked, between = chat(tokenizer, [_TURN], asks=True).rpartition(_TURN)
    _, answered, ending = chat(tokenizer, [_TURN, _ANSWER]).rpartition(_ANSWER)
    if not (asked and answered):
        raise ValueError("it leaves out what is said")
    return Template(opening, between, ending)


def prompt_tokens(tokenizer: Any, prompt: str) -> list[int]:
    """A prompt's tokens: as a user's turn of a chat where the tokenizer has a template, else as it stands."""
    if chats(tokenizer):
        return list(tokenizer(chat(tokenizer, [prompt], asks=True), add_special_tokens=False)["input_ids"])
    return list(tokenizer(prompt)["input_ids"])


def stops(tokenizer: Any, generation: Any) -> set[int]:
    """The tokens that end an answer, by the tokenizer and a generation_config."""
    told = getattr(generation, "eos_token_id", None)
    found = [*(told if isinstance(told, list) else [told]), tokenizer.eos_token_id]
    return {int(token) for token in found if token is not None}


def check_template(tokenizer: Any) -> Template:
    """Ask the tokenizer for what stands around turns (`template_of`).

    Raises:
        InputError: its chat template does not take a turn and an answer.
    """
    return _taken("evaluate.calibration.conversations", "0", _TURN, partial(template_of, tokenizer))


def check_prompts(tokenizer: Any, prompts: Sequence[str], context_tokens: int) -> None:
    """Ask the tokenizer for every prompt.

    Raises:
        InputError: its chat template takes none, or a prompt leaves no room in the model's context.
    """
    for prompt in prompts:
        found = len(_taken("export.answers", "null", prompt, partial(prompt_tokens, tokenizer, prompt)))
        if not 0 < found < context_tokens:
            raise InputError(
                f"params.yaml: export.answers: the prompt {prompt!r} has {found} tokens; expected from 1 to "
                f"{context_tokens - 1}, as the model's context is {context_tokens}"
            )


def _taken(key: str, without: str, prompt: str, ask: Callable[[], T]) -> T:
    try:
        return ask()
    except Exception as error:  # whatever a template of someone else's raises
        raise InputError(
            f"params.yaml: {key}: the model's chat template does not take {prompt!r} "
            f"({type(error).__name__}: {error}); set {key} to {without}, or mend the template"
        ) from error
