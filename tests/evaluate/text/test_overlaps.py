"""The same text or questions in two roles: refused, or told in the division."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.config.params import Corpora, Division, PartSources
from stages.evaluate.text import corpora
from stages.evaluate.text.corpora import Document
from stages.evaluate.text.overlaps import Seen
from stages.files import InputError

DIVISION = Division(calibration=0.3, selection=0.35, report=0.35)


def paragraphs(first: int, count: int = 20) -> list[str]:
    return [f"Paragraph number {i} is long enough to tell a text apart." for i in range(first, first + count)]


def split(calibration: str, selection: str, report: str) -> PartSources:
    return PartSources(calibration=calibration, selection=selection, report=report)


def notes(root: Path, **texts: str | PartSources) -> dict[str, str]:
    section = Corpora(division=DIVISION, texts=dict(texts), questions={})
    return {name: corpus.note for name, corpus in corpora.load_texts(section, root).items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, first in (("a", 0), ("b", 100), ("c", 200)):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(paragraphs(first)))
    return tmp_path


def linked(how: Callable[[Path, Path], Any]) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        how(folder / "b.txt", folder / "same.txt")
        return "same.txt"

    return make


def written(name: str, content: Callable[[list[str]], str]) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / name).write_text(content(paragraphs(100)), newline="")
        return name

    return make


SAME = {
    "itself": lambda folder: "b.txt",
    "another path": lambda folder: f"../{folder.name}/b.txt",
    "absolute": lambda folder: str(folder / "b.txt"),
    "hard link": linked(os.link),
    "symbolic link": linked(lambda old, new: new.symlink_to(old)),
    "copy": linked(shutil.copy),
    "capitals": written("same.txt", lambda texts: "\n\n".join(texts).upper()),
    "line ends": written("same.txt", lambda texts: "\r\n\r\n".join(texts)),
    "rows": written("same.jsonl", lambda texts: "".join(json.dumps({"text": t}) + "\n" for t in texts)),
    "another order": written("same.txt", lambda texts: "\n\n".join(texts[::-1])),
    "mostly": written("same.txt", lambda texts: "\n\n".join([*texts[:13], *paragraphs(900, 7)])),
    "a slice": written("same.txt", lambda texts: "\n\n".join(texts[:3])),
}


@pytest.mark.parametrize("make", SAME.values(), ids=SAME.keys())
@pytest.mark.parametrize("role", ["selection", "calibration"])
def test_a_report_of_what_was_chosen_on_is_refused(
    folder: Path, make: Callable[[Path], str], role: str
) -> None:
    same = make(folder)
    sources = {"calibration": "a.txt", "selection": "a.txt", "report": "b.txt", role: same}
    with pytest.raises(InputError, match=rf"texts\.mine, part {role}, .* part report, too: the final"):
        notes(folder, mine=PartSources(**sources))
    with pytest.raises(InputError, match=rf"texts\.one, part {role}, .*texts\.two, part report, too"):
        notes(
            folder,
            one=PartSources(**{"calibration": "a.txt", "selection": "a.txt", "report": "c.txt", role: same}),
            two=split("a.txt", "a.txt", "b.txt"),
        )


def test_what_else_parts_share_is_told(folder: Path) -> None:
    (folder / "d.txt").write_text("\n\n".join([*paragraphs(100, 5), *paragraphs(300, 15)]))
    note = notes(folder, mine=split("a.txt", "b.txt", "d.txt"))["mine"]
    assert (
        "25.0 % of corpora.texts.mine, part selection, stands in corpora.texts.mine, part report, too" in note
    )
    note = notes(folder, mine=split("b.txt", "b.txt", "c.txt"))["mine"]
    assert "100.0 % of corpora.texts.mine, part calibration, stands in corpora.texts.mine, part selec" in note


def test_two_names_for_one_text_are_told(folder: Path) -> None:
    found = notes(folder, one="a.txt", two="a.txt")
    assert (
        "100.0 % of corpora.texts.one, part report, stands in corpora.texts.two, part report, too"
        in (found["one"])
    )
    assert "of corpora.texts.two, part report, stands in corpora.texts.one" in found["two"]


def test_texts_that_differ_and_lines_that_all_texts_have_say_nothing(folder: Path) -> None:
    for name in ("a", "b", "c"):
        with (folder / f"{name}.txt").open("a") as file:
            file.write("\n\n= References =\n\n* * *\n")
    assert notes(folder, mine=split("a.txt", "b.txt", "c.txt"))["mine"] == "one source a part"


def test_texts_of_lines_are_compared_by_line(folder: Path) -> None:
    for name, first in (("a", 0), ("b", 100), ("c", 115)):
        (folder / f"{name}.txt").write_text("\n".join(paragraphs(first)))
    assert (
        "25.0 % of corpora.texts.mine, part selection, stands in corpora.texts.mine, part report"
        in (notes(folder, mine=split("a.txt", "b.txt", "c.txt"))["mine"])
    )
    assert "25.0 %" in notes(folder, mine=split("lines:a.txt", "lines:b.txt", "c.txt"))["mine"]


def quiz(folder: Path, name: str, first: int, count: int = 12, choices: str = "abcd") -> str:
    rows = [
        {"question": f"Which is {i}?", "choices": [f"{c}{i}" for c in choices], "answer": i % 4}
        for i in range(first, first + count)
    ]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def asked(root: Path, **questions: str | PartSources) -> dict[str, str]:
    section = Corpora(division=DIVISION, texts={"unread": "x"}, questions=dict(questions))
    return {name: corpus.note for name, corpus in corpora.load_questions(section, root).items()}


def test_questions_that_were_chosen_on_are_not_reported(tmp_path: Path) -> None:
    a, b, c = (quiz(tmp_path, f"{name}.jsonl", first) for name, first in (("a", 0), ("b", 100), ("c", 200)))
    with pytest.raises(InputError, match="the report part asks all 12 questions"):
        asked(tmp_path, mine=split(a, b, b))
    shuffled = quiz(tmp_path, "shuffled.jsonl", 100, choices="DCBA")
    with pytest.raises(InputError, match=r"questions\.mine, part selection, stands in .* part report"):
        asked(tmp_path, mine=split(a, b, shuffled))
    with pytest.raises(InputError, match=r"questions\.one, part selection, stands in .*\.two, part re"):
        asked(tmp_path, one=split(a, b, c), two=split(a, a, b))


def test_questions_that_a_part_asks_twice_are_kept_and_told(tmp_path: Path) -> None:
    a, b, c = (quiz(tmp_path, f"{name}.jsonl", first) for name, first in (("a", 0), ("b", 100), ("c", 200)))
    with (tmp_path / c).open("a") as file:
        file.write((tmp_path / c).read_text().split("\n")[0].replace('"answer": 0', '"answer": 1') + "\n")
    assert "report: 1 duplicates kept" in asked(tmp_path, mine=split(a, b, c))["mine"]
    note = asked(tmp_path, mine=c)["mine"]
    assert "1 duplicates dropped; 1 of them with another subject or answer" in note


def test_examples_that_the_report_asks_are_told(tmp_path: Path) -> None:
    a, b = quiz(tmp_path, "a.jsonl", 0), quiz(tmp_path, "b.jsonl", 6)
    c = quiz(tmp_path, "c.jsonl", 200)
    note = asked(tmp_path, mine=split(a, c, b))["mine"]
    assert (
        "50.0 % of corpora.questions.mine, part calibration, stands in corpora.questions.mine, part re"
        in note
    )
    assert asked(tmp_path, mine=split(b, c, b))["mine"].count("100.0 %") == 1


def test_documents_lose_what_others_hold() -> None:
    long = "a line that is long enough to tell one text from another one"
    seen = Seen([Document("a", f"short\n\n{long}, the first\n{long}, the second")])
    mixed, nothing_else = f"its own\n{long}, the SECOND\nand more", f"{long},  the first"
    documents = [Document("b", mixed), Document("c", nothing_else)]
    assert [document.text for document in seen.without(documents)] == ["its own\nand more"]
    assert not seen.holds("short")
