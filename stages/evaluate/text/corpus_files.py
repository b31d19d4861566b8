"""Texts and questions in files: what a reader of a source hands over, and the local formats.

Text files are .txt, .raw and .tokens; tables (.jsonl .csv .parquet) hold a text or a question a row.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from stages.files import InputError

TEXT_SUFFIXES = (".txt", ".raw", ".tokens")
TABLE_SUFFIXES = (".jsonl", ".csv", ".parquet")
TEXT_COLUMNS = ("text", "sentence", "content")
QUESTION_COLUMNS = "question, choices (a list of 4) or choice0 … choice3, answer (0 to 3 or A to D)"

# WikiText sets an article's title as " = Title = " between blank lines (formulas have such lines without)
# and a section's as " = = Section = = ".
_WIKITEXT_TITLE = re.compile(
    r"(?:\A|^[ \r]*\n)(?P<line> = (?!= )(?P<title>.+?)(?<! =) =[ \r]*\n)[ \r]*$", re.MULTILINE
)
_ANSWERS = {"0": 0, "1": 1, "2": 2, "3": 3, "A": 0, "B": 1, "C": 2, "D": 3}


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

    `whole` leaves out nothing: the documents are a text file unchanged, or all rows of a table.
    Otherwise they are a text file's paragraphs (its articles where it is in WikiText's format) or a
    table's rows that hold text.

    Raises:
        InputError: nothing readable is there; the message lists what is.
    """
    _check_file(path, source, TEXT_SUFFIXES + TABLE_SUFFIXES)
    if path.suffix in TABLE_SUFFIXES:
        return texts_of_rows(read_table(path, source), source, whole=whole)
    text = _decode(path, source)
    if not text.strip():
        raise InputError(f"{source!r} is an empty text; give a file that holds text")
    documents = (Document(path.name, text),) if whole else tuple(_split(text))
    return SourceContent(source, documents, len(documents))


def read_lines(path: Path, source: str, *, whole: bool) -> SourceContent[Document]:
    """The lines of a text file as the rows that the hub has of WikiText-2 and PTB.

    In WikiText's format a row keeps its line end, and a blank line is an empty row; elsewhere, as for
    PTB, a row is a line without the blanks around it.

    Raises:
        InputError: no text file is there, or it is empty.
    """
    _check_file(path, source, TEXT_SUFFIXES)
    text = _decode(path, source)
    lines = text.split("\n")[: -1 if text.endswith("\n") else None]
    if _WIKITEXT_TITLE.search(text):
        rows = [f"{line}\n" if line.strip() else "" for line in lines]
    else:
        rows = [line.strip() for line in lines]
    return texts_of_rows([{"text": row} for row in rows], source, whole=whole)


def texts_of_rows(rows: Sequence[Mapping[str, Any]], source: str, *, whole: bool) -> SourceContent[Document]:
    """The rows of a table or of a hub's split as documents.

    `whole` keeps blank rows: protocols for WikiText-2 and PTB join all rows of a split.

    Raises:
        InputError: no rows, no text column, or a row without text.
    """
    column = next((name for name in TEXT_COLUMNS if rows and name in rows[0]), None)
    if column is None:
        found = f"the columns {', '.join(rows[0])}" if rows else "no rows"
        raise InputError(f"{source!r} has {found}; expected rows with a column {' or '.join(TEXT_COLUMNS)}")
    texts: list[str] = []
    for i, row in enumerate(rows):
        text = row.get(column)
        if not isinstance(text, str):
            raise InputError(f"{source!r}: {column} of row {i} is {text!r}; expected text. Correct that row")
        texts.append(text)
    if not any(text.strip() for text in texts):
        raise InputError(f"{source!r} has {len(rows)} rows, all without text; give one that holds text")
    if whole:
        rows_of = tuple(Document(f"row-{i:06d}", text) for i, text in enumerate(texts))
        return SourceContent(source, rows_of, len(rows_of))
    lines = "\n".join(text.rstrip("\n") for text in texts)
    if _WIKITEXT_TITLE.search(lines):  # there, rows are the lines of articles
        articles = tuple(_split(lines))
        return SourceContent(source, articles, len(articles), f"{len(texts)} rows joined into articles")
    documents = tuple(Document(f"row-{i:06d}", text) for i, text in enumerate(texts) if text.strip())
    blank = len(texts) - len(documents)
    return SourceContent(source, documents, len(texts), f"{blank} blank rows passed over" if blank else "")


def _split(text: str) -> Iterator[Document]:
    """Articles of a text in WikiText's format, paragraphs of any other."""
    titles = list(_WIKITEXT_TITLE.finditer(text))
    if not titles:
        for i, paragraph in enumerate(filter(str.strip, re.split(r"\n\s*\n", text))):
            yield Document(f"paragraph-{i:06d}", paragraph.strip())
        return
    ends = [title.start("line") for title in titles[1:]] + [len(text)]
    for i, (title, end) in enumerate(zip(titles, ends, strict=True)):
        yield Document(f"{i:04d} {title['title']}", text[title.start("line") : end].strip())


def read_question_files(path: Path, source: str) -> SourceContent[Question]:
    """The questions of a table, or of a folder of MMLU's CSV files (one a subject).

    Raises:
        InputError: nothing readable is there (the message lists what is), or a row is no question.
    """
    if not path.is_dir():
        _check_file(path, source, TABLE_SUFFIXES)
        questions = questions_of_rows(read_table(path, source), source, _subject(path))
    else:
        files = sorted(path.glob("*.csv"))
        if not files:
            raise InputError(f"{source!r} is a folder without .csv files. {nearby(path)}")
        questions = tuple(
            question
            for file in files
            for question in questions_of_rows(
                read_table(file, source), f"{source}/{file.name}", _subject(file)
            )
        )
    return SourceContent(source, questions, len(questions))


def questions_of_rows(rows: Sequence[Mapping[str, Any]], source: str, subject: str) -> tuple[Question, ...]:
    """Rows in cais/mmlu's layout, or that of MMLU's CSV files, as questions.

    `subject` is that of the rows without one of their own.

    Raises:
        InputError: no rows, or a row that is no question with four choices and an answer.
    """
    if not rows:
        raise InputError(f"{source!r} has no rows; expected questions ({QUESTION_COLUMNS})")
    return tuple(_question(row, f"{source!r}: row {i}", subject, i) for i, row in enumerate(rows))


def _question(row: Mapping[str, Any], where: str, subject: str, index: int) -> Question:
    text = row.get("question")
    if not isinstance(text, str) or not text.strip():
        raise InputError(
            f"{where} has question {text!r} and the columns {', '.join(map(str, row))}; "
            f"expected {QUESTION_COLUMNS}"
        )
    choices = row.get("choices", [row.get(f"choice{i}") for i in range(4)])
    if isinstance(choices, str):  # in a CSV file a list is JSON
        with contextlib.suppress(json.JSONDecodeError):
            choices = json.loads(choices)
    if not isinstance(choices, list) or len(choices) != 4 or not all(isinstance(c, str) for c in choices):
        raise InputError(f"{where} has choices {choices!r}; expected four texts ({QUESTION_COLUMNS})")
    answer = _ANSWERS.get(str(row.get("answer")).strip().upper())
    if answer is None:
        raise InputError(f"{where} has answer {row.get('answer')!r}; expected 0 to 3 or A to D")
    of_row = str(row.get("subject") or subject)
    first, second, third, fourth = choices
    return Question(f"{of_row}-{index}", of_row, text, (first, second, third, fourth), answer, index)


def _subject(path: Path) -> str:
    return re.sub(r"_(dev|test|val)$", "", path.stem)


def read_table(path: Path, source: str) -> list[dict[str, Any]]:
    """The rows of a .jsonl, .csv or .parquet file.

    Raises:
        InputError: the file is not in the format that its name says.
    """
    if path.suffix == ".parquet":
        from pyarrow import parquet

        try:
            return list(parquet.read_table(path).to_pylist())
        except (OSError, ValueError) as error:  # Arrow's own errors derive from these
            raise InputError(f"{source!r}: {path.name} is no readable Parquet file: {error}") from error
    text = _decode(path, source).removeprefix("\ufeff")  # spreadsheets write a byte order mark
    return _jsonl(text, source, path) if path.suffix == ".jsonl" else _csv(text, source, path)


def _jsonl(text: str, source: str, path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{source!r}: line {number} of {path.name} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"{source!r}: line {number} of {path.name} is {line[:40]!r}; expected an object")
        rows.append(row)
    return rows


def _csv(text: str, source: str, path: Path) -> list[dict[str, Any]]:
    csv.field_size_limit(1 << 30)  # a field may be a whole document
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise InputError(f"{source!r}: {path.name} is no readable CSV file: {error}") from error
    if not rows:
        return []
    header = rows[0]
    if len(header) == 6 and header[5] in ("A", "B", "C", "D"):  # MMLU's own release has no header
        header = ["question", "choice0", "choice1", "choice2", "choice3", "answer"]
    else:
        rows = rows[1:]
    for i, row in enumerate(rows):
        if row and len(row) != len(header):
            raise InputError(
                f"{source!r}: row {i} of {path.name} has {len(row)} fields; expected {len(header)}"
            )
    return [dict(zip(header, row, strict=True)) for row in rows if row]


def _decode(path: Path, source: str) -> str:
    try:
        return path.read_bytes().decode("utf-8")  # not read_text, which would change line ends
    except UnicodeDecodeError as error:
        raise InputError(f"{source!r}: {path.name} is not UTF-8 ({error}); convert it to UTF-8") from error


def _check_file(path: Path, source: str, suffixes: tuple[str, ...]) -> None:
    if not path.is_file() or path.suffix not in suffixes:
        what = (
            "a folder"
            if path.is_dir()
            else f"a {path.suffix or 'nameless'} file"
            if path.exists()
            else "not there"
        )
        raise InputError(f"{source!r} is {what}; expected a file in {' '.join(suffixes)}. {nearby(path)}")


def nearby(path: Path) -> str:
    """What lies in the folder, or in the folder of the file, for an error's message."""
    folder = next(folder for folder in (path, *path.parents, Path()) if folder.is_dir())
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return f"In {folder} there is: {shown or 'nothing'}"
