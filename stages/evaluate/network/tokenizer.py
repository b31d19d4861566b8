"""A tokenizer: whole, fast, with no token beyond the embedding; or refused before weights are read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from stages.config.params import ModelSection
from stages.files import InputError
from stages.sample.tokenizer_files import AGAIN, beyond, check_files

_PROBE = "The quick brown fox, 123."


def load_tokenizer(folder: Path, model: ModelSection, rows: int) -> Any:
    """The tokenizer of a model's folder, for an embedding of so many rows.

    Raises:
        InputError: its files are missing, damaged or links out of the folder, it is one written in Python, or
            a token that it makes has no row.
    """
    check_files(folder, model.source, rows)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
    except Exception as error:  # whatever its files lead transformers to
        raise InputError(
            f"model.source {model.source!r} has a tokenizer that cannot be loaded ({_told(error)}). {AGAIN}"
        ) from error
    return accepted(tokenizer, model, rows)


def accepted(tokenizer: Any, model: ModelSection, rows: int) -> Any:
    """A tokenizer that was loaded, of which a model with so many rows can be measured.

    Raises:
        InputError: it is one written in Python, makes no token, or one that has no row, or its chat template
            is damaged.
    """
    try:
        ids = tokenizer(_PROBE)["input_ids"] if tokenizer.is_fast else []
        largest = max([*tokenizer.get_vocab().values(), *ids], default=-1)
        templates = tokenizer.chat_template
    except Exception as error:  # whatever its files lead transformers to
        raise InputError(
            f"model.source {model.source!r} has a tokenizer that cannot be loaded ({_told(error)}). {AGAIN}"
        ) from error
    if not tokenizer.is_fast:  # which alone say what text a token covers
        raise InputError(
            f"model.source {model.source!r} has a {type(tokenizer).__name__}, which is written in Python; "
            "expected one with a tokenizer.json. Save it with transformers' "
            "`PreTrainedTokenizerFast` and put the tokenizer.json beside the weights"
        )
    if not ids:
        raise InputError(
            f"model.source {model.source!r} has a tokenizer that makes no token of text. {AGAIN}"
        )
    if largest >= rows:
        raise beyond(largest, rows, model.source)
    _check_template(templates, model.source)
    return tokenizer


def _check_template(templates: Any, source: str) -> None:
    """Raise InputError if a chat template is no Jinja, or not text: who loads the export would stumble."""
    from jinja2 import TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    extension = re.compile(r"{%-?\s*(end)?generation\s*-?%}")  # transformers' own tag
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    named = templates if isinstance(templates, dict) else {"default": templates}
    for name, template in named.items():
        if template is None:
            continue
        try:
            if not isinstance(template, str):
                raise TypeError(f"it is a {type(template).__name__}; expected text")
            environment.parse(extension.sub("", template))
        except (TemplateSyntaxError, TypeError, RecursionError) as error:
            told = f"model.source {source!r} has a damaged chat template ({name}: {error}). {AGAIN}"
            raise InputError(told) from error


def _told(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
