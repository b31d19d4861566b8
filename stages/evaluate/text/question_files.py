"""Multiple-choice questions in files and tables: columns, choices and answers as they are found.

A row is a question with four choices, in cais/mmlu's layout or that of MMLU's CSV files.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.evaluate.text import characters
from stages.evaluate.text.corpus_files import Question, SourceContent
from stages.evaluate.text.local_files import (
    TABLE_SUFFIXES,
    Table,
    check_file,
    is_null,
    nearby,
    read_table,
)
from stages.files import InputError

EXPECTED = "question, choices (a list of 4) or choice0 … choice3 or A … D, answer (0 to 3 or A to D)"
_QUESTION = ("question", "input", "prompt")
_CHOICES = ("choices", "options")
_FOUR = (  # the fifth is looked for to be refused
    ("choice0", "choice1", "choice2", "choice3", "choice4"),
    ("choice1", "choice2", "choice3", "choice4", "choice5"),
    ("a", "b", "c", "d", "e"),
)
_ANSWER = ("answer", "target", "answerkey", "label")
_COLUMNS = frozenset((*_QUESTION, *_CHOICES, *_ANSWER, *(name for names in _FOUR for name in names)))

_NUMBER = re.compile(r"([0-9]+)(\.0*)?")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True)
class _Asked:
    """A row with a question: `where` it stands, for errors, and its answer as it stands there."""

    where: str
    subject: str
    index: int
    question: str
    choices: tuple[str, ...]
    answer: Any

    @property
    def number(self) -> int | None:
        """The answer as a number from 0, written 2, 2.0, C, "(c)" or "C."."""
        mark = (_text(self.answer) or "").strip(" \t\n()[].:").upper()
        if mark in ("A", "B", "C", "D"):
            return "ABCD".index(mark)
        number = _NUMBER.fullmatch(mark)
        return int(number[1]) if number else None

    @property
    def by_text(self) -> int | None:
        """The one choice whose text the answer is."""
        text = (_text(self.answer) or "").strip()
        same = [i for i, choice in enumerate(self.choices) if choice.strip() == text]
        return same[0] if len(same) == 1 else None


def read_question_files(path: Path, source: str) -> SourceContent[Question]:
    """The questions of a table, or of a folder of MMLU's CSV files (one a subject).

    Raises:
        InputError: nothing readable is there (the message lists what is), or a row is no question.
    """
    if not path.is_dir():
        check_file(path, source, TABLE_SUFFIXES)
        return questions_of_tables([(_subject(path), read_table(path, source, _COLUMNS))], source)
    try:
        files = sorted(file for file in path.iterdir() if file.is_file())
    except OSError as error:
        raise InputError(f"{source!r} cannot be listed: {error.strerror}") from error
    tables = [f for f in files if f.suffix.lower() == ".csv" and not f.name.startswith(".")]
    if not tables:
        raise InputError(f"{source!r} is a folder without .csv files. {nearby(path)}")
    read = [(_subject(file), read_table(file, source, _COLUMNS)) for file in tables]
    return questions_of_tables(read, source, Counter({"other files passed over": len(files) - len(tables)}))


def questions_of_tables(
    tables: Sequence[tuple[str, Table]], source: str, counts: Counter[str] | None = None
) -> SourceContent[Question]:
    """The questions of tables, each with the subject of its rows that have none of their own.

    Rows without a question or without an answer are passed over. How the answers are meant is decided
    on all of them.

    Raises:
        InputError: a table has no rows or not the columns of questions, or a row is no question with
            four choices and an answer.
    """
    counts = Counter(counts or {})
    asked: list[_Asked] = []
    passed: list[str] = []
    for subject, table in tables:
        counts.update(table.counts)
        asked += _asked(table, subject, counts, passed)
    if not asked:
        raise InputError(f"{passed[0]}; expected {EXPECTED}, and no other row is a question")
    answers = _answers(asked, counts)
    for row in asked:
        characters.count_kept("\n".join((row.question, *row.choices)), counts)
    questions = tuple(
        Question(f"{q.subject}-{q.index}", q.subject, q.question, _four(q.choices), answer, q.index)
        for q, answer in zip(asked, answers, strict=True)
    )
    return SourceContent(source, questions, len(asked) + len(passed), "; ".join(characters.told(counts)))


def _asked(table: Table, subject: str, counts: Counter[str], passed: list[str]) -> Iterator[_Asked]:
    if not table.rows:
        raise InputError(f"{table.name} has no rows; expected questions ({EXPECTED})")
    columns = {name.strip().lower(): name for name in table.columns}
    question, choices, answer = _layout(table, columns)
    for i, row in enumerate(table.rows):
        where = f"{table.name}: row {i}"
        text, found = _text(row.get(question)), row.get(answer)
        if text is None or not text.strip():
            if not is_null(row.get(question)) and text is None:
                raise InputError(f"{where} has question {row.get(question)!r}; expected text")
            counts["rows without a question passed over"] += 1
            passed.append(f"{where} has question {row.get(question)!r}")
        elif is_null(found) or not str(found).strip():
            counts["questions without an answer passed over"] += 1
            passed.append(f"{where} has answer {found!r}")
        else:
            of_row = _text(row.get(columns.get("subject", "subject"))) or ""
            texts = _choices(row, choices, where, counts)
            if _SURROGATE.search("".join((of_row, text, *texts))):
                raise InputError(
                    f"{where} holds half of a surrogate pair, which is no text; correct that row"
                )
            yield _Asked(where, of_row if of_row.strip() else subject, i, text, texts, found)


def _layout(table: Table, columns: Mapping[str, str]) -> tuple[str, list[str], str]:
    """The names of a table's columns: question, choices (one list, or one each), answer."""
    question = next((columns[name] for name in _QUESTION if name in columns), None)
    answer = next((columns[name] for name in _ANSWER if name in columns), None)
    lists = [[columns[name]] for name in _CHOICES if name in columns]
    lists += [
        [columns[n] for n in names if n in columns] for names in _FOUR if columns.keys() >= {*names[:4]}
    ]
    if question is None or answer is None or not lists:
        raise InputError(
            f"{table.name} has the columns {', '.join(columns.values())}; expected {EXPECTED}. "
            "Rename them to these"
        )
    return question, lists[0], answer


def _choices(
    row: Mapping[str, Any], names: Sequence[str], where: str, counts: Counter[str]
) -> tuple[str, ...]:
    values = _listed(row.get(names[0])) if len(names) == 1 else [row.get(name) for name in names]
    if len(names) > 4 and isinstance(values, list) and not (_text(values[4]) or "").strip():
        values = values[:4]
    if not isinstance(values, list) or len(values) != 4:
        many = f"{len(values)} choices" if isinstance(values, list) else "choices"
        raise InputError(f"{where} has {many} {values!r}; expected four texts ({EXPECTED})")
    texts = [text for value in values if (text := _text(value)) is not None]
    if len(texts) < 4:
        null = next((value for value in values if _text(value) is None), None)
        remedy = (
            "a table library takes the texts None, NA and nan for missing: write the file again with "
            "keep_default_na=False"
            if is_null(null)
            else "correct that row"
        )
        raise InputError(
            f"{where} has choices {values!r}; expected four texts, of which {null!r} is none: {remedy}"
        )
    if not any(text.strip() for text in texts):
        raise InputError(f"{where} has four blank choices; expected four texts. Correct that row")
    counts["choices that are numbers read as text"] += sum(not isinstance(value, str) for value in values)
    counts["questions with a blank choice kept"] += not all(text.strip() for text in texts)
    counts["questions with one choice twice kept"] += len({text.strip() for text in texts}) < 4
    return tuple(texts)


def _listed(value: Any) -> Any:
    """A list that a CSV file holds as JSON, or as Python writes it."""
    if not isinstance(value, str):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list):
            return found
    return value


def _text(value: Any) -> str | None:
    """A cell as text; None if it is neither text nor a number."""
    if isinstance(value, bool) or is_null(value):
        return None
    return str(value) if isinstance(value, str | int | float) else None


def _answers(asked: Sequence[_Asked], counts: Counter[str]) -> list[int]:
    """The place of each right choice (0 to 3), read alike in all rows: as marks, or as texts of choices."""
    numbers = [row.number for row in asked]
    marks = [number for number in numbers if number is not None and number < 4]
    texts = [place for row in asked if (place := row.by_text) is not None]
    if len(marks) == len(asked):
        if len(texts) == len(asked) and texts != marks:
            row = next(row for row in asked if row.number != row.by_text)
            raise InputError(
                f"{row.where} has answer {row.answer!r}, which is the place of one choice and the text of "
                f"another ({', '.join(row.choices)}), and all rows can be read in both ways; write A to D"
            )
        return marks
    if len(texts) == len(asked):
        counts["answers are the texts of their choices"] += len(texts)
        return texts
    row = next(row for row in asked if row.number is None or row.number > 3)
    from_one = {n for n in numbers if n is not None} <= {1, 2, 3, 4} and row.number == 4
    remedy = (
        "The answers go from 1 to 4 and none is 0: count them from 0"
        if from_one and None not in numbers
        else "Correct that row"
    )
    raise InputError(
        f"{row.where} has answer {row.answer!r}; expected 0 to 3 or A to D, or in all rows the text of one "
        f"of the choices. {remedy}, or write A to D"
    )


def _four(choices: tuple[str, ...]) -> tuple[str, str, str, str]:
    first, second, third, fourth = choices
    return first, second, third, fourth


def _subject(path: Path) -> str:
    return re.sub(r"_(dev|test|val)$", "", path.stem)
