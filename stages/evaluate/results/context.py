"""context.json: everything that decided what a journal's rows were measured on and how, readable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.files import InputError, read_document, write_json
from stages.metrics.metric import QuestionFormat

SCHEMA, VERSION = "prunecast.context", 1


@dataclass(frozen=True)
class Context:
    """The digest that journal rows carry, and what it is of (`Evaluator.context`)."""

    digest: str
    content: Mapping[str, Any]

    @property
    def question_formats(self) -> list[QuestionFormat]:
        """The formats in which the questions were asked."""
        return list(self.content["measurement"]["question_formats"])

    @property
    def weights(self) -> str:
        """The digest of the weights that were measured (`Checkpoint.digest`)."""
        return str(self.content.get("weights", "unknown"))


def require_weights(path: Path, weights: str, source: str) -> None:
    """Raise InputError unless what `path` is of was measured on weights of that digest, those of `source`."""
    found = read(path, path.parent.name).weights
    if found != weights:
        raise InputError(
            f"model.source {source!r} holds other weights than {path} was measured on (SHA-256 "
            f"{weights[:16]} today, {found[:16]} then): its files were replaced. Nothing was changed. To "
            "measure the weights of today run `dvc repro -f evaluate`, then `dvc repro`; or put the files of "
            "then back"
        )


def write(path: Path, context: Context) -> None:
    write_json(path, SCHEMA, VERSION, {"digest": context.digest, **context.content})


def read(path: Path, stage: str = "evaluate") -> Context:
    """Read what `write` wrote, in the stage of that name.

    Raises:
        InputError: the file is missing, of another schema, or damaged.
    """

    def make(document: dict[str, Any]) -> Context:
        content = {key: v for key, v in document.items() if key not in ("schema", "version", "digest")}
        found = Context(document["digest"], content)
        found.question_formats  # noqa: B018 - what later stages read must be there
        return found

    return read_document(path, SCHEMA, VERSION, stage, make)
