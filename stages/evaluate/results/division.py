"""division.json: which document or question of each corpus is in which part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.files import CHECKSUM, InputError, read_document, write_json

SCHEMA, VERSION = "prunecast.division", 1


@dataclass(frozen=True)
class DividedPart:
    """A part of a corpus; `fingerprint` is of its contents, `characters` is None for questions."""

    count: int
    fingerprint: str
    ids: Sequence[str]
    characters: int | None = None


@dataclass(frozen=True)
class DividedCorpus:
    """Where a corpus comes from, how many items were found there and used, why not all, and its parts."""

    source: str
    found: int
    used: int
    note: str
    parts: Mapping[str, DividedPart]


def write(path: Path, corpora: Mapping[str, DividedCorpus]) -> None:
    """Write every corpus under its name.

    Raises:
        InputError: a corpus has a name that the file needs for itself, or the disk does not take it.
    """
    if odd := {"schema", "version", CHECKSUM} & corpora.keys():
        raise InputError(f"no corpus can be called {min(odd)!r}: give it another name in params.yaml")
    write_json(path, SCHEMA, VERSION, {name: _to_json(corpus) for name, corpus in corpora.items()})


def read(path: Path) -> dict[str, DividedCorpus]:
    """Read what `write` wrote.

    Raises:
        InputError: the file is missing, of another schema, or damaged.
    """

    def make(document: dict[str, Any]) -> dict[str, DividedCorpus]:
        return {
            name: DividedCorpus(
                corpus["source"],
                corpus["found"],
                corpus["used"],
                corpus["note"],
                {part: DividedPart(**content) for part, content in corpus["parts"].items()},
            )
            for name, corpus in document.items()
            if name not in ("schema", "version")
        }

    return read_document(path, SCHEMA, VERSION, "evaluate", make)


def _to_json(corpus: DividedCorpus) -> dict[str, Any]:
    parts = {
        name: {
            "count": part.count,
            **({} if part.characters is None else {"characters": part.characters}),
            "fingerprint": part.fingerprint,
            "ids": list(part.ids),
        }
        for name, part in corpus.parts.items()
    }
    return {
        "source": corpus.source,
        "found": corpus.found,
        "used": corpus.used,
        "note": corpus.note,
        "parts": parts,
    }
