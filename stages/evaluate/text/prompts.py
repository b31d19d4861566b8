"""Prompts as a model is asked them: a user's turn of a chat where its tokenizer has a template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stages.files import InputError


def chats(tokenizer: Any) -> bool:
    """Whether the tokenizer has a template of chats."""
    return bool(getattr(tokenizer, "chat_template", None))


def prompt_tokens(tokenizer: Any, prompt: str) -> list[int]:
    """A prompt's tokens: as a user's turn of a chat where the tokenizer has a template, else as it stands."""
    if chats(tokenizer):
        turn = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return list(tokenizer(prompt)["input_ids"])


def check_prompts(tokenizer: Any, prompts: Sequence[str], context_tokens: int) -> None:
    """Ask the tokenizer for every prompt, before anything expensive.

    Raises:
        InputError: its chat template takes none, or a prompt leaves no room in the model's context.
    """
    for prompt in prompts:
        try:
            found = len(prompt_tokens(tokenizer, prompt))
        except Exception as error:  # whatever a template of someone else's raises
            raise InputError(
                f"params.yaml: export.answers: the model's chat template does not take {prompt!r} "
                f"({type(error).__name__}: {error}); set export.answers to null, or mend the template"
            ) from error
        if not 0 < found < context_tokens:
            raise InputError(
                f"params.yaml: export.answers: the prompt {prompt!r} has {found} tokens; expected from 1 to "
                f"{context_tokens - 1}, as the model's context is {context_tokens}"
            )
