"""The files of a model's tokenizer, as far as they can be judged without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from stages.files import InputError, unreadable
from stages.sample.links import leaves

MAKERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
"""Files of which one at least makes a tokenizer."""
AGAIN = (
    "Fetch the tokenizer's files (tokenizer.json, tokenizer_config.json, …) from where the model comes from"
)


def check_files(folder: Path, source: str, rows: int) -> None:
    """Refuse a tokenizer's files that cannot be what belongs to an embedding of so many rows.

    Raises:
        InputError: they are missing, damaged, or links out of the folder; or a token has no row.
    """
    for path in _objects(folder):
        if reason := unreadable(path):
            raise InputError(f"model.source {source!r}: {path} {reason}")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError, OSError) as error:
            raise InputError(f"model.source {source!r}: {path} is damaged ({error}). {AGAIN}") from error
        if not isinstance(found, dict):
            kind = type(found).__name__
            raise InputError(f"model.source {source!r}: {path} holds a {kind}; expected an object. {AGAIN}")
    if not any((folder / name).is_file() for name in MAKERS):
        raise InputError(
            f"model.source {source!r} has no tokenizer: none of {', '.join(MAKERS)} is in {folder}. {AGAIN}"
        )
    for path in _texts(folder):
        if leaves(path, folder):  # any text passes for one, and goes into the export
            raise InputError(
                f"model.source {source!r}: {path} is a link out of the model's folder, to {path.resolve()}; "
                "put the file itself there if it is the model's"
            )
    if (folder / "tokenizer.json").is_file():
        _check_fast(folder / "tokenizer.json", source, rows)


def _objects(folder: Path) -> Iterator[Path]:
    """Files that hold a JSON object, links to nothing among them."""
    names = {path.name for path in folder.glob("*token*.json")} | {"vocab.json", "chat_template.json"}
    for path in sorted(folder / name for name in names):
        if path.exists() or path.is_symlink():
            yield path


def _texts(folder: Path) -> Iterator[Path]:
    for pattern in ("*.jinja", "*.txt", "additional_chat_templates/*"):
        yield from sorted(folder.glob(pattern))


def _check_fast(path: Path, source: str, rows: int) -> None:
    from tokenizers import Tokenizer

    try:
        largest = max(Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True).values(), default=-1)
    except Exception as error:  # tokenizers raises nothing more special
        raise InputError(f"model.source {source!r}: {path} is damaged ({error}). {AGAIN}") from error
    if largest >= rows:
        raise beyond(largest, rows, source)


def beyond(largest: int, rows: int, source: str) -> InputError:
    """The error of a tokenizer whose tokens reach beyond the embedding."""
    return InputError(
        f"model.source {source!r} has a tokenizer with tokens up to {largest}, and an embedding of {rows} "
        "rows (vocab_size): those from there have no row. The tokenizer is another model's, or was added "
        "to without `resize_token_embeddings`: take the one that belongs to the weights"
    )
