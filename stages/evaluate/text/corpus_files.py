"""Texts in files and tables: what a reader of a source hands over, and how text becomes documents.

Text files are .txt, .raw and .tokens; tables (.jsonl .csv .parquet) hold a text a row.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from stages.evaluate.text import characters
from stages.evaluate.text.local_files import (
    TABLE_SUFFIXES,
    TEXT_SUFFIXES,
    Table,
    check_file,
    is_null,
    read_decoded,
    read_table,
)
from stages.files import InputError

TEXT_COLUMNS = ("text", "sentence", "content")

# WikiText sets an article's title as " = Title = " between blank lines (formulas have such lines without)
# and a section's as " = = Section = = ".
_WIKITEXT_TITLE = re.compile(r"(?:\A|^ *\n)(?P<line> = (?!= )(?P<title>.+?)(?<! =) = *\n) *$", re.MULTILINE)


@dataclass(frozen=True)
class Document:
    id: str
    text: str


@dataclass(frozen=True)
class Question:
    """A question with four choices, of which `answer` (0 to 3) is right; `index` is its source's order."""

    id: str
    subject: str
    question: str
    choices: tuple[str, str, str, str]
    answer: int
    index: int = 0


T = TypeVar("T", Document, Question)


@dataclass(frozen=True)
class SourceContent(Generic[T]):
    """What a source holds: `items` are those of the `found` documents that can be used."""

    citation: str
    items: tuple[T, ...]
    found: int
    note: str = ""


def read_text_file(path: Path, source: str, *, whole: bool) -> SourceContent[Document]:
    """A local file as documents.

    `whole` is for a part by itself: the documents are a text file as it is, but for its line ends and
    byte order marks, or all rows of a table. Otherwise they are a text file's paragraphs (its articles
    where it is in WikiText's format) or a table's rows that hold text.

    Raises:
        InputError: nothing readable is there; the message lists what is.
    """
    check_file(path, source, TEXT_SUFFIXES + TABLE_SUFFIXES)
    if path.suffix.lower() in TABLE_SUFFIXES:
        return texts_of_rows(read_table(path, source, TEXT_COLUMNS), source, whole=whole)
    counts: Counter[str] = Counter()
    text = read_decoded(path, source, counts)
    if not text.strip():
        raise InputError(f"{source!r} is an empty text; give a file that holds text")
    documents = (Document(path.name, text),) if whole else tuple(_split(text, counts))
    characters.count_kept(text, counts)
    return SourceContent(source, documents, len(documents), "; ".join(characters.told(counts)))


def read_lines(path: Path, source: str, *, whole: bool) -> SourceContent[Document]:
    """The lines of a text file as the rows that the hub has of WikiText-2 and PTB.

    In WikiText's format a row keeps its line end, and a blank line is an empty row; elsewhere, as for
    PTB, a row is a line without the blanks around it.

    Raises:
        InputError: no text file is there, or it is empty.
    """
    check_file(path, source, TEXT_SUFFIXES)
    counts: Counter[str] = Counter()
    text = read_decoded(path, source, counts)
    lines = text.split("\n")[: -1 if text.endswith("\n") else None]
    if _WIKITEXT_TITLE.search(text):
        rows = [f"{line}\n" if line.strip() else "" for line in lines]
    else:
        rows = [line.strip() for line in lines]
    table = Table(repr(source), [{"text": row} for row in rows], counts)
    return texts_of_rows(table, source, whole=whole)


def texts_of_rows(table: Table, source: str, *, whole: bool) -> SourceContent[Document]:
    """The rows of a table or of a hub's split as documents; rows without a value are passed over.

    `whole` keeps blank rows: protocols for WikiText-2 and PTB join all rows of a split.

    Raises:
        InputError: no rows, no text column, no text in any row, or a row with something else.
    """
    counts = Counter(table.counts)
    texts = _column(table, counts)
    if not any(text.strip() for text in texts.values()):
        raise InputError(
            f"{table.name} has {len(table.rows)} rows, all without text; give one that holds text"
        )
    lines = "" if whole else "\n".join(text.rstrip("\n") for text in texts.values())
    if _WIKITEXT_TITLE.search(lines):  # there, rows are the lines of articles
        articles = tuple(_split(lines, counts))
        notes = [f"{len(texts)} rows joined into articles", *characters.told(counts)]
        return SourceContent(source, articles, len(articles), "; ".join(notes))
    documents = tuple(Document(f"row-{i:06d}", text) for i, text in texts.items() if whole or text.strip())
    counts["blank rows passed over"] += len(texts) - len(documents)
    return SourceContent(source, documents, len(table.rows), "; ".join(characters.told(counts)))


def _column(table: Table, counts: Counter[str]) -> dict[int, str]:
    """The texts by row."""
    columns = {name.strip().lower(): name for name in table.columns}
    column = next((columns[name] for name in TEXT_COLUMNS if name in columns), None)
    if column is None:
        found = f"the columns {', '.join(columns.values())}" if table.rows else "no rows"
        raise InputError(f"{table.name} has {found}; expected rows with a column {' or '.join(TEXT_COLUMNS)}")
    texts: dict[int, str] = {}
    for i, row in enumerate(table.rows):
        text = row.get(column)
        if is_null(text):
            counts["rows that are null passed over"] += 1
        elif not isinstance(text, str):
            raise InputError(
                f"{table.name}: {column} of row {i} is {text!r}; expected text. Correct that row"
            )
        else:
            texts[i] = characters.cleaned(text, counts)
            characters.count_kept(texts[i], counts)
    return texts


def _split(text: str, counts: Counter[str]) -> Iterator[Document]:
    """Articles of a text in WikiText's format, and what stands before the first; paragraphs of any other."""
    titles = list(_WIKITEXT_TITLE.finditer(text))
    if not titles:
        for i, paragraph in enumerate(filter(str.strip, re.split(r"\n\s*\n", text))):
            yield Document(f"paragraph-{i:06d}", paragraph.strip())
        return
    if preamble := text[: titles[0].start("line")].strip():
        counts["characters before the first title are a document of their own"] += len(preamble)
        yield Document("before the first title", preamble)
    ends = [title.start("line") for title in titles[1:]] + [len(text)]
    for i, (title, end) in enumerate(zip(titles, ends, strict=True)):
        yield Document(f"{i:04d} {title['title']}", text[title.start("line") : end].strip())
