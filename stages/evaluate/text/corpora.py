"""The corpora of params.yaml, divided into the parts calibration, selection and report.

Calibration text feeds importance, selection text the measured pairs and finalists, and report text the
final table: no document serves twice. A division depends on the documents' contents alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic

from stages.config.params import PARTS, Corpora, Division, Part, PartSources
from stages.evaluate.results.division import DividedCorpus, DividedPart
from stages.evaluate.text.corpus_files import Document, Question, SourceContent, T
from stages.evaluate.text.corpus_sources import read_questions, read_texts
from stages.evaluate.text.overlaps import overlaps
from stages.files import InputError

__all__ = ["Corpus", "Document", "Question", "divided", "load_questions", "load_texts"]


@dataclass(frozen=True)
class Corpus(Generic[T]):
    """A corpus in its three parts.

    `found` documents were in the source, of which `used` are in the parts; `note` says why they
    differ and how the corpus was divided.
    """

    name: str  # its key in params.yaml
    source: str  # as a reader would cite it
    parts: Mapping[Part, tuple[T, ...]]
    found: int
    used: int
    note: str

    def fingerprint(self, part: Part) -> str:
        """SHA-256 (hex) over the contents of a part, order included and ids not."""
        return hashlib.sha256("\n".join(map(_content, self.parts[part])).encode()).hexdigest()


def load_texts(corpora: Corpora, root: Path = Path()) -> dict[str, Corpus[Document]]:
    """Read and divide the text corpora; relative paths are relative to `root`.

    One source is divided by document. Of a corpus with one source a part, each part is all of its
    source: a text file as it is, or every row of a table or hub split, blank ones too. What parts have in
    common is told in the corpora's notes.

    Raises:
        InputError: a source is not there or not readable, or leaves a part without text, or a report part
            is mostly text of other parts.
    """
    loaded: dict[str, Corpus[Document]] = {}
    for name, source in corpora.texts.items():
        with _named(f"corpora.texts.{name}"):
            if isinstance(source, str):
                loaded[name] = _divided(name, read_texts(source, root, whole=False), corpora.division)
            else:
                contents = {part: read_texts(getattr(source, part), root, whole=True) for part in PARTS}
                loaded[name] = _joined(name, contents)
    return compared("corpora.texts", corpora.texts, loaded)


def load_questions(corpora: Corpora, root: Path = Path()) -> dict[str, Corpus[Question]]:
    """Read and divide the question corpora; relative paths are relative to `root`.

    Questions are in the order of their hash in either case, so that the first few of a part are of
    mixed subjects. Of a corpus with one source a part, the selection part goes without questions that
    the report part asks too (MMLU's splits share some). Calibration questions are examples in prompts
    and nothing else, and no question is an example of itself, so they stay. What else parts have in
    common is told in the corpora's notes.

    Raises:
        InputError: a source is not there or not readable, or leaves a part without questions, or a report
            part is mostly questions of another corpus's selection part.
    """
    loaded: dict[str, Corpus[Question]] = {}
    for name, source in corpora.questions.items():
        with _named(f"corpora.questions.{name}"):
            if isinstance(source, str):
                loaded[name] = _divided(name, read_questions(source, root), corpora.division)
            else:
                contents = {part: _repeated(read_questions(getattr(source, part), root)) for part in PARTS}
                contents["selection"] = _without(contents["selection"], contents["report"])
                joined = _joined(name, contents)
                parts = {part: tuple(_ordered(joined.parts[part])) for part in PARTS}
                loaded[name] = replace(joined, parts=parts)
    return compared("corpora.questions", corpora.questions, loaded)


def compared(
    section: str, sources: Mapping[str, str | PartSources], loaded: Mapping[str, Corpus[T]]
) -> dict[str, Corpus[T]]:
    """The corpora with what their parts have in common in their notes.

    Raises:
        InputError: a report part is mostly what another part chooses or calibrates by.
    """
    by_document = [name for name, source in sources.items() if isinstance(source, str)]
    parts = {name: corpus.parts for name, corpus in loaded.items()}
    notes = overlaps(section, parts, divided=by_document)
    return {name: _noted(corpus, notes[name]) for name, corpus in loaded.items()}


def _noted(corpus: Corpus[T], notes: Iterable[str]) -> Corpus[T]:
    return replace(corpus, note="; ".join([corpus.note, *notes]))


def divided(corpora: Mapping[str, Corpus[Document] | Corpus[Question]]) -> dict[str, DividedCorpus]:
    """Which document is in which part."""
    return {
        name: DividedCorpus(
            source=corpus.source,
            found=corpus.found,
            used=corpus.used,
            note=corpus.note,
            parts={part: _described(corpus, part) for part in PARTS},
        )
        for name, corpus in corpora.items()
    }


def _described(corpus: Corpus[Document] | Corpus[Question], part: Part) -> DividedPart:
    items = corpus.parts[part]
    texts = [item.text for item in items if isinstance(item, Document)]
    return DividedPart(
        count=len(items),
        fingerprint=corpus.fingerprint(part),
        ids=[item.id for item in items],
        characters=sum(map(len, texts)) if texts else None,
    )


def _divided(name: str, content: SourceContent[T], fractions: Division) -> Corpus[T]:
    """Divide one source by document, in the order of the documents' hashes: no seed, no file order."""
    unique: dict[str, T] = {}
    otherwise = 0  # duplicates of another subject or answer
    for item in _ordered(content.items):
        kept = unique.setdefault(_identity(item), item)
        otherwise += _content(kept) != _content(item)
    items = tuple(unique.values())
    first = round(fractions.calibration * len(items))
    second = first + round(fractions.selection * len(items))
    parts: dict[Part, tuple[T, ...]] = {
        "calibration": items[:first],
        "selection": items[first:second],
        "report": items[second:],
    }
    for part in PARTS:
        if not parts[part]:
            raise InputError(
                f"{content.citation!r} has {len(items)} different documents, "
                f"which leaves the part {part} empty; give a larger source, another corpora.division, "
                "or one source a part"
            )
    duplicates = len(content.items) - len(items)
    notes: list[str] = [
        content.note,
        f"{duplicates} duplicates dropped" if duplicates else "",
        f"{otherwise} of them with another subject or answer" if otherwise else "",
        "divided by document, in the order of their SHA-256",
    ]
    return Corpus(name, content.citation, parts, content.found, len(items), "; ".join(filter(None, notes)))


def _joined(name: str, contents: Mapping[Part, SourceContent[T]]) -> Corpus[T]:
    """A corpus that keeps its own splits: one source a part."""
    notes: list[str] = [f"{part}: {content.note}" for part, content in contents.items() if content.note]
    return Corpus(
        name,
        source="; ".join(f"{part}: {content.citation}" for part, content in contents.items()),
        parts={part: content.items for part, content in contents.items()},
        found=sum(content.found for content in contents.values()),
        used=sum(len(content.items) for content in contents.values()),
        note="; ".join(["one source a part", *notes]),
    )


def _repeated(content: SourceContent[Question]) -> SourceContent[Question]:
    """The questions with a note of those that are asked again: published figures count them too."""
    repeated = len(content.items) - len(set(map(_identity, content.items)))
    note = f"{repeated} duplicates kept" if repeated else ""
    return replace(content, note="; ".join(filter(None, [content.note, note])))


def _without(content: SourceContent[Question], other: SourceContent[Question]) -> SourceContent[Question]:
    """The selection part's questions that the report part does not ask."""
    asked = {_identity(item) for item in other.items}
    items = tuple(item for item in content.items if _identity(item) not in asked)
    if not items:
        raise InputError(
            f"the report part asks all {len(content.items)} questions of the selection part's source "
            f"{content.citation!r}; expected sources that differ"
        )
    dropped = len(content.items) - len(items)
    note = f"{dropped} dropped that the report part asks" if dropped else ""
    return replace(content, items=items, note="; ".join(filter(None, [content.note, note])))


def _ordered(items: Iterable[T]) -> Iterator[T]:
    """Items by the hash of what makes them the same item; content and id only break ties."""
    yield from sorted(items, key=lambda item: (_identity(item), _content(item), item.id))


def _identity(item: Document | Question) -> str:
    """A hash that duplicates share: two questions are one whatever their subject or marked answer."""
    return _content(item) if isinstance(item, Document) else _digest(item.question, *item.choices)


def _content(item: Document | Question) -> str:
    if isinstance(item, Document):
        return _digest(item.text)
    return _digest(item.subject, item.question, *item.choices, str(item.answer))


def _digest(*fields: str) -> str:
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()


@contextmanager
def _named(key: str) -> Iterator[None]:
    """Errors inside name the key of params.yaml."""
    try:
        yield
    except InputError as error:
        raise InputError(f"params.yaml: {key}: {error}") from error.__cause__
