"""Corpora and question files made by the hundred: read alike whatever their form, or refused in words.

`PRUNECAST_CORPORA=5000 pytest --timeout 0 tests/evaluate/text/test_generated_corpora.py` makes more of each.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from stages.config.params import PARTS, Corpora, Division
from stages.evaluate.text import corpora
from stages.evaluate.text.corpora import Corpus, Document, Question
from stages.files import InputError

COUNT = int(os.environ.get("PRUNECAST_CORPORA", "60"))
many = settings(
    max_examples=COUNT, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
DIVISION = Division(calibration=0.3, selection=0.35, report=0.35)


def texts_in(folder: Path, name: str) -> Corpus[Document]:
    return corpora.load_texts(Corpora(division=DIVISION, texts={"mine": name}, questions={}), folder)["mine"]


def questions_in(folder: Path, name: str) -> Corpus[Question]:
    section = Corpora(division=DIVISION, texts={"unread": "x"}, questions={"mine": name})
    return corpora.load_questions(section, folder)["mine"]


def told(note: str, *words: str) -> int:
    """The sum of the counts that stand before any of the words in a note."""
    return sum(int(n.replace(",", "")) for word in words for n in re.findall(rf"([\d,]+) {word}", note))


# --- texts ------------------------------------------------------------------------------------------

ENCODINGS: dict[str, Callable[[str], bytes]] = {
    "utf-8": lambda text: text.encode(),
    "utf-8 with a mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "utf-16": lambda text: text.encode("utf-16"),
    "utf-16-be": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "utf-32": lambda text: text.encode("utf-32"),
}
words = st.text("abcDE éß€😀\u200b\u00ad,;\"'\t\x0c\x85=", min_size=1, max_size=30).map(str.strip)
lines = st.lists(words.filter(bool), min_size=1, max_size=3).map("\n".join)
documents = st.lists(lines, min_size=8, max_size=14, unique_by=lambda text: text)


def as_rows(texts: list[str], form: str) -> bytes:
    if form == "jsonl":
        return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    if form == "parquet":
        out = io.BytesIO()
        parquet.write_table(pyarrow.table({"text": texts}), out)
        return out.getvalue()
    table = io.StringIO(newline="")
    csv.writer(table, delimiter={"csv": ",", "semicolons": ";"}[form]).writerows(
        [["text", "id"], *([t, "1"] for t in texts)]
    )
    return table.getvalue().encode()


@many
@given(documents, st.sampled_from(sorted(ENCODINGS)), st.sampled_from(["\n", "\r\n", "\r"]), st.booleans())
def test_a_text_is_the_same_in_every_encoding_and_with_every_line_end(
    tmp_path: Path, texts: list[str], encoding: str, ending: str, upper: bool
) -> None:
    name = "TEXT.TXT" if upper else "text.txt"
    (tmp_path / name).write_bytes(ENCODINGS[encoding]("\n\n".join(texts).replace("\n", ending)))
    found = texts_in(tmp_path, name)
    assert sorted(d.text for part in PARTS for d in found.parts[part]) == sorted(texts)
    breaks = "\n\n".join(texts).count("\n")
    assert told(found.note, "line ends CRLF or CR") == (breaks if ending != "\n" else 0)
    assert ("byte order mark" in found.note) == (encoding != "utf-8")
    zero = sum(text.count("\u200b") + text.count("\xad") for text in texts)
    assert told(found.note, "characters without width kept") == zero


@many
@given(documents, st.lists(st.sampled_from([None, "", " \n"]), max_size=4), st.data())
def test_rows_are_the_same_in_every_format_and_none_is_lost_untold(
    tmp_path: Path, texts: list[str], odd: list[str | None], data: st.DataObject
) -> None:
    rows = data.draw(st.permutations([*texts, *odd]))
    copies = data.draw(st.lists(st.sampled_from(texts), max_size=2))
    for form in ("jsonl", "parquet", "csv", "semicolons"):
        plain = [text or "" for text in rows] if form in ("csv", "semicolons") else rows
        name = f"rows.{'csv' if form == 'semicolons' else form}"
        (tmp_path / name).write_bytes(as_rows([*plain, *copies], form))
        found = texts_in(tmp_path, name)
        assert sorted(d.text for part in PARTS for d in found.parts[part]) == sorted(texts)
        assert found.found == len(rows) + len(copies)
        lost = told(found.note, "blank rows passed", "rows that are null passed", "duplicates dropped")
        assert found.found - found.used == lost


titles = st.text("abc =", min_size=1, max_size=8).map(lambda text: text.strip(" =")).filter(bool)


@many
@given(st.lists(titles, min_size=8, max_size=12), lines.filter(lambda t: "=" not in t) | st.just(""))
@example(["a"] * 8, "")
@example(["a"] * 8, "before")
def test_no_character_of_wikitext_is_lost(tmp_path: Path, names: list[str], before: str) -> None:
    articles = "".join(f" \n = {name} = \n \n Text {i} . \n" for i, name in enumerate(names))
    for ending in ("\n", "\r\n"):
        whole = (f"{before}\n" if before else "") + articles
        (tmp_path / "wiki.tokens").write_bytes(whole.replace("\n", ending).encode())
        found = texts_in(tmp_path, "wiki.tokens")
        texts = [d.text for part in PARTS for d in found.parts[part]]
        assert found.found == len(names) + bool(before)
        assert sorted("".join("".join(texts).split())) == sorted("".join(whole.split()))
        assert told(found.note, "characters before the first title") == len(before)


# --- damage -----------------------------------------------------------------------------------------


@many
@given(st.data())
def test_damage_is_read_or_refused_in_words(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes cut, changed, put in and swapped in files of every format: never another error than ours."""
    form = data.draw(st.sampled_from(["txt", "jsonl", "csv", "parquet"]))
    asked = data.draw(st.booleans()) and form != "txt"
    texts = [f"Text number {i}, é." for i in range(12)]
    content = "\n\n".join(texts).encode() if form == "txt" else as_rows(texts, form)
    if asked:
        content = as_questions([row(i) for i in range(12)], form)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        odd = data.draw(
            st.sampled_from([b"", b"\0", b"\xff", b'"', b"\r", b"[" * 20_000, b"\n", b"9" * 5000])
        )
        content = content[:at] + odd + content[at + data.draw(st.integers(0, 40)) :]
    (tmp_path / f"damaged.{form}").write_bytes(content)
    refusal, found = "", None
    try:
        found = (questions_in if asked else texts_in)(tmp_path, f"damaged.{form}")
    except InputError as error:
        refusal = str(error)
    assert f"damaged.{form}" in refusal or (found is not None and 3 <= found.used <= found.found)


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_a_file_of_another_format_is_refused(tmp_path: Path, form: str) -> None:
    for other in {"jsonl", "csv", "parquet"} - {form}:
        (tmp_path / f"rows.{form}").write_bytes(as_rows(["a", "b"] * 5, other))
        with pytest.raises(InputError, match=rf"rows\.{form}"):
            texts_in(tmp_path, f"rows.{form}")


# --- questions --------------------------------------------------------------------------------------

CHOICES = [
    ["north", "south", "east", "west"],
    ["None", "NA", "nan", "null"],
    ["10", "20", "30", "40"],
    ["1.5", "2", "-3", "1e9"],
    [" a", "b, c", 'd "e"', "f\ng"],
    ["same", "same", "other", "more"],
    ["", "b", "c", "d"],
]
ANSWERS: dict[str, Callable[[int], str]] = {
    "number": str,
    "whole float": lambda place: f"{place}.0",
    "letter": lambda place: "ABCD"[place],
    "small letter": lambda place: f"{'abcd'[place]} ",
    "in brackets": lambda place: f"({'ABCD'[place]})",
    "with a stop": lambda place: f"{'ABCD'[place]}.",
}


def row(i: int, choices: list[str] | None = None, answer: Any = None) -> dict[str, Any]:
    choices = choices or CHOICES[0]
    return {"question": f"Which is {i}?", "choices": choices, "answer": i % 4 if answer is None else answer}


def as_questions(rows: list[dict[str, Any]], form: str) -> bytes:
    if form == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if form == "parquet":
        out = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(rows), out)
        return out.getvalue()
    table = io.StringIO(newline="")
    writer = csv.writer(table, delimiter="\t" if form == "tabs" else ",")
    names = {"csv": "choice0 choice1 choice2 choice3", "letters": "A B C D", "tabs": "a b c d"}
    if form in names:
        writer.writerow(["Question", *names[form].split(), "Answer "])
        writer.writerows([row["question"], *row["choices"], row["answer"]] for row in rows)
    else:
        write: Callable[[Any], str] = json.dumps if form == "lists" else repr
        writer.writerow(["question", "choices", "answer"])
        writer.writerows([row["question"], write(row["choices"]), row["answer"]] for row in rows)
    return table.getvalue().encode()


FORMS = {"jsonl": "jsonl", "parquet": "parquet"} | dict.fromkeys(
    ("csv", "letters", "tabs", "lists", "Python's lists"), "csv"
)


@many
@given(
    st.lists(st.tuples(st.sampled_from(CHOICES), st.integers(0, 3)), min_size=10, max_size=14),
    st.sampled_from(sorted(ANSWERS)),
    st.sampled_from(sorted(FORMS)),
)
def test_questions_are_the_same_in_every_form(
    tmp_path: Path, asked: list[tuple[list[str], int]], style: str, form: str
) -> None:
    rows = [row(i, choices, ANSWERS[style](place)) for i, (choices, place) in enumerate(asked)]
    name = f"quiz.{FORMS[form]}"
    (tmp_path / name).write_bytes(as_questions(rows, form))
    found = questions_in(tmp_path, name)
    read = sorted((q for part in PARTS for q in found.parts[part]), key=lambda q: q.index)
    assert [(list(q.choices), q.answer) for q in read] == [(choices, place) for choices, place in asked]
    assert told(found.note, "questions with a blank choice") == sum("" in c for c, _ in asked)
    assert told(found.note, "questions with one choice twice") == sum(len({*c}) < 4 for c, _ in asked)


@many
@given(st.integers(0, 11), st.data())
def test_one_odd_row_is_told_or_named(tmp_path: Path, place: int, data: st.DataObject) -> None:
    """A row that is no question refuses the file and is named; one without a value is passed over."""
    rows = [row(i) for i in range(12)]
    blank = data.draw(st.booleans())
    odd: list[dict[str, Any]]
    if blank:
        odd = [{"question": value} for value in (None, " ")]
        odd += [{"answer": value} for value in (None, "", float("nan"))]
    else:
        four = CHOICES[0]
        odd = [{"answer": a} for a in (4, -1, 0.5, True, "E", "AB", "right", [0], {"a": 1})]
        odd += [{"choices": c} for c in (four[:3], [*four, "up"], [*four[:3], None], "four", {"a": "b"})]
        odd += [{"choices": None}, {"choices": 5}]
        odd += [{"choices": [*four[:3], c]} for c in (True, ["x"], float("nan"), "\ud800")]
        odd += [{"choices": [""] * 4}, {"question": ["Which?"]}, {"question": "half \udc00"}]
    rows[place] |= data.draw(st.sampled_from(odd))
    (tmp_path / "quiz.jsonl").write_bytes(as_questions(rows, "jsonl"))
    if blank:
        found = questions_in(tmp_path, "quiz.jsonl")
        assert (found.found, found.used) == (12, 11)
        assert told(found.note, "rows without a question passed", "questions without an answer passed") == 1
    else:
        with pytest.raises(InputError, match=rf"'quiz\.jsonl': row {place} h"):
            questions_in(tmp_path, "quiz.jsonl")


def test_answers_that_are_texts_of_choices(tmp_path: Path) -> None:
    rows = [row(i, answer=CHOICES[0][i % 4]) for i in range(12)]
    (tmp_path / "quiz.jsonl").write_bytes(as_questions(rows, "jsonl"))
    found = questions_in(tmp_path, "quiz.jsonl")
    assert "12 answers are the texts of their choices" in found.note
    assert all(q.answer == q.index % 4 for part in PARTS for q in found.parts[part])
    rows[3]["choices"] = ["west"] * 4
    (tmp_path / "quiz.jsonl").write_bytes(as_questions(rows, "jsonl"))
    with pytest.raises(InputError, match="row 0 has answer 'north'; expected 0 to 3 or A to D, or in all"):
        questions_in(tmp_path, "quiz.jsonl")


def test_answers_counted_from_one_are_refused_with_the_remedy(tmp_path: Path) -> None:
    rows = [row(i, answer=i % 4 + 1) for i in range(12)]
    (tmp_path / "quiz.jsonl").write_bytes(as_questions(rows, "jsonl"))
    with pytest.raises(InputError, match=r"row 3 has answer 4; .* from 1 to 4 and none is 0: count"):
        questions_in(tmp_path, "quiz.jsonl")


def test_answers_that_can_be_read_in_two_ways_are_refused(tmp_path: Path) -> None:
    rows = [row(i, ["0", "1", "3", "2"], i % 4) for i in range(12)]
    (tmp_path / "quiz.jsonl").write_bytes(as_questions(rows, "jsonl"))
    with pytest.raises(InputError, match="row 2 has answer 2, which is the place of one choice and the"):
        questions_in(tmp_path, "quiz.jsonl")


def test_choices_that_are_numbers_are_text_and_told(tmp_path: Path) -> None:
    rows = [row(i) | {"choices": [10 * i, 1.5, 7, 8]} for i in range(12)]
    (tmp_path / "quiz.jsonl").write_bytes(as_questions(rows, "jsonl"))
    found = questions_in(tmp_path, "quiz.jsonl")
    assert {q.choices[1:] for part in PARTS for q in found.parts[part]} == {("1.5", "7", "8")}
    assert "48 choices that are numbers read as text" in found.note
