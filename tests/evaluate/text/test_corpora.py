"""Corpora: what the readers make of sources, and what a division promises."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from stages.config.params import PARTS, Corpora, Division, PartSources
from stages.evaluate.results import division
from stages.evaluate.text import corpora, wikitext
from stages.evaluate.text.corpora import Corpus, Document, Question
from stages.evaluate.text.corpus_files import SourceContent
from stages.evaluate.text.corpus_sources import read_texts
from stages.files import CHECKSUM, InputError

FRACTIONS = Division(calibration=0.3, selection=0.35, report=0.35)
PACKAGED = Corpora(
    division=FRACTIONS,
    texts={"wikipedia": "package:gensim/wikipedia", "news": "package:gensim/lee-news"},
    questions={"mmlu-dev": "package:lm-eval/mmlu-dev"},
)
CHOICES = ["red", "green", "blue", "grey"]


def text_corpus(root: Path, source: str | PartSources) -> Corpus[Document]:
    section = Corpora(division=FRACTIONS, texts={"mine": source}, questions={})
    return corpora.load_texts(section, root)["mine"]


def question_corpus(root: Path, source: str | PartSources) -> Corpus[Question]:
    section = Corpora(division=FRACTIONS, texts={"unread": "x"}, questions={"mine": source})
    return corpora.load_questions(section, root)["mine"]


def parts(calibration: str, selection: str, report: str) -> PartSources:
    return PartSources(calibration=calibration, selection=selection, report=report)


def rows_of(root: Path, source: str) -> list[str]:
    """The documents of a source that is a part by itself."""
    return [document.text for document in read_texts(source, root, whole=True).items]


def texts_of(corpus: Corpus[Document]) -> list[str]:
    return sorted(document.text for part in PARTS for document in corpus.parts[part])


def questions_of(corpus: Corpus[Question]) -> list[Question]:
    return sorted((q for part in PARTS for q in corpus.parts[part]), key=lambda q: q.id)


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def question_rows(count: int) -> list[dict[str, Any]]:
    return [{"question": f"Which colour is {i}?", "choices": CHOICES, "answer": i % 4} for i in range(count)]


# --- division -----------------------------------------------------------------------------------

distinct_texts = st.lists(st.text(min_size=1, max_size=12), min_size=14, max_size=60, unique=True)
fractions = st.tuples(st.integers(2, 6), st.integers(2, 6), st.integers(2, 6)).map(
    lambda w: Division(calibration=w[0] / sum(w), selection=w[1] / sum(w), report=w[2] / sum(w))
)


def divide(documents: list[Document], division: Division = FRACTIONS) -> Corpus[Document]:
    return corpora._divided("mine", SourceContent("here", tuple(documents), len(documents)), division)


def documents_of(texts: list[str]) -> list[Document]:
    return [Document(f"d{i}", text) for i, text in enumerate(texts)]


@settings(deadline=None)
@given(distinct_texts, fractions)
def test_division_is_a_partition_that_respects_the_fractions(texts: list[str], division: Division):
    corpus = divide(documents_of(texts), division)
    assert texts_of(corpus) == sorted(texts)
    for part in PARTS:
        assert abs(len(corpus.parts[part]) - getattr(division, part) * len(texts)) < 1 + 1e-9


@settings(deadline=None)
@given(st.data(), distinct_texts)
def test_division_does_not_depend_on_the_order_of_the_source(data: st.DataObject, texts: list[str]):
    repeated = documents_of(texts + texts[:3])
    shuffled = data.draw(st.permutations(repeated))
    assert divide(shuffled).parts == divide(repeated).parts


@settings(deadline=None)
@given(distinct_texts, st.data())
def test_duplicates_are_dropped_and_counted(texts: list[str], data: st.DataObject):
    copies = data.draw(st.lists(st.sampled_from(texts), min_size=1, max_size=10))
    corpus = divide(documents_of(texts + copies))
    assert texts_of(corpus) == sorted(texts)
    assert corpus.found - corpus.used == len(copies)
    assert f"{len(copies)} duplicates dropped" in corpus.note


def test_a_document_stays_in_its_order_when_ids_change():
    texts = [f"text {i}" for i in range(20)]
    renamed = [Document(f"other {99 - i}", text) for i, text in enumerate(texts)]
    before, after = divide(documents_of(texts)), divide(renamed)
    for part in PARTS:
        assert [d.text for d in before.parts[part]] == [d.text for d in after.parts[part]]
        assert before.fingerprint(part) == after.fingerprint(part)
    assert [d.text for part in PARTS for d in before.parts[part]] != texts  # mixed, not as they came


def test_fingerprints_tell_contents_and_order_and_boundaries():
    def fingerprint(*texts: str) -> str:
        return Corpus(
            "mine", "here", {"report": tuple(documents_of(list(texts)))}, len(texts), len(texts), ""
        ).fingerprint("report")

    prints = [fingerprint("a", "b"), fingerprint("b", "a"), fingerprint("ab"), fingerprint("a", "c")]
    assert len(set(prints)) == 4
    assert all(len(p) == 64 for p in prints)
    assert fingerprint("a", "b") == prints[0]


def test_fingerprint_of_questions_tells_every_field():
    base = Question("id", "art", "Which?", ("1", "2", "3", "4"), 0)
    others = [
        Question("id", "law", "Which?", ("1", "2", "3", "4"), 0),
        Question("id", "art", "What?", ("1", "2", "3", "4"), 0),
        Question("id", "art", "Which?", ("1", "2", "3", "5"), 0),
        Question("id", "art", "Which?", ("1", "2", "3", "4"), 1),
    ]
    prints = {Corpus("m", "h", {"report": (q,)}, 1, 1, "").fingerprint("report") for q in [base, *others]}
    assert len(prints) == 5


def test_too_few_documents_name_the_corpus_and_the_part(tmp_path: Path):
    (tmp_path / "short.txt").write_text("One paragraph.\n\nAnother.\n")
    with pytest.raises(InputError, match=r"corpora\.texts\.mine: 'short\.txt' has 2 .*part report empty"):
        text_corpus_with(tmp_path, "short.txt", Division(calibration=0.4, selection=0.4, report=0.2))


def text_corpus_with(root: Path, source: str, division: Division) -> None:
    corpora.load_texts(Corpora(division=division, texts={"mine": source}, questions={}), root)


# --- the packaged corpora -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def packaged_texts() -> dict[str, Corpus[Document]]:
    return corpora.load_texts(PACKAGED)


@pytest.fixture(scope="module")
def mmlu() -> Corpus[Question]:
    return corpora.load_questions(PACKAGED)["mmlu-dev"]


def test_wikipedia_counts(packaged_texts: dict[str, Corpus[Document]]):
    wikipedia = packaged_texts["wikipedia"]
    assert (wikipedia.found, wikipedia.used) == (106, 96)
    assert "10 of 106 articles passed over" in wikipedia.note
    assert metadata.version("gensim") in wikipedia.source
    ids = [document.id for part in PARTS for document in wikipedia.parts[part]]
    assert {"Aardvark (680)", "Anarchism (12)"} <= set(ids)
    assert "Ada (630)" not in ids  # a disambiguation page


@pytest.mark.parametrize(
    "markup",
    ["[[", "]]", "{{", "}}", "{|", "|}", "<ref", "</", "''", "&nbsp;", "==", "Category:", "thumb|", "\0"],
)
def test_wikipedia_has_no_markup(packaged_texts: dict[str, Corpus[Document]], markup: str):
    assert [text for text in texts_of(packaged_texts["wikipedia"]) if markup in text] == []


def test_wikipedia_is_whole_paragraphs(packaged_texts: dict[str, Corpus[Document]]):
    paragraphs = [p for text in texts_of(packaged_texts["wikipedia"]) for p in text.split("\n\n")]
    assert len(paragraphs) > 4000
    assert all(len(p) >= 40 and p.rstrip("\"'”’)")[-1] in ".!?" for p in paragraphs)
    assert not any("\n" in p or "  " in p or "( " in p or " )" in p or "()" in p for p in paragraphs)
    words = Counter(word for p in paragraphs for word in p.lower().split())
    assert 0.05 < words["the"] / words.total() < 0.1  # as in English prose


def test_news_counts(packaged_texts: dict[str, Corpus[Document]]):
    news = packaged_texts["news"]
    assert (news.found, news.used) == (300, 293)
    assert "7 duplicates dropped" in news.note
    assert all("\n" not in text and text for text in texts_of(news))


def test_mmlu_dev_counts(mmlu: Corpus[Question]):
    assert (mmlu.found, mmlu.used) == (282, 280)
    assert "1 of 282 passed over" in mmlu.note
    assert "college_chemistry-3" in mmlu.note
    assert "1 duplicates dropped" in mmlu.note  # college_physics has one question twice
    questions = questions_of(mmlu)
    assert len({q.subject for q in questions}) == 57
    assert all(choice and "(B)" not in choice for q in questions for choice in q.choices)
    # Dev answers are spread over the letters; a parser that takes the wrong letter shows here.
    assert min(Counter(q.answer for q in questions).values()) > 50


def test_mmlu_dev_known_questions(mmlu: Corpus[Question]):
    """Against MMLU's own release, whose texts these are."""
    of_id = {q.id: q for q in questions_of(mmlu)}
    anatomy = of_id["anatomy-0"]
    assert anatomy.question == "Which of the following is the body cavity that contains the pituitary gland?"
    assert anatomy.choices == ("Abdominal", "Cranial", "Pleural", "Spinal")
    assert anatomy.answer == 1
    logic = of_id["high_school_computer_science-2"]
    assert logic.question.endswith("What is displayed as a result of running the program?")
    assert "\n" in logic.question  # code keeps its lines


def test_loading_is_deterministic(packaged_texts: dict[str, Corpus[Document]], mmlu: Corpus[Question]):
    again = corpora.load_questions(PACKAGED)["mmlu-dev"]
    assert again == mmlu
    assert [again.fingerprint(part) for part in PARTS] == [mmlu.fingerprint(part) for part in PARTS]


def test_division_is_json_and_says_where_each_document_went(
    packaged_texts: dict[str, Corpus[Document]], mmlu: Corpus[Question], tmp_path: Path
):
    divided = corpora.divided({**packaged_texts, "mmlu-dev": mmlu})
    division.write(tmp_path / "division.json", divided)
    assert division.read(tmp_path / "division.json") == divided
    described = json.loads((tmp_path / "division.json").read_text())
    assert (described.pop("schema"), described.pop("version")) == (division.SCHEMA, division.VERSION)
    assert len(described.pop(CHECKSUM)) == 16
    assert list(described) == ["wikipedia", "news", "mmlu-dev"]
    loaded: dict[str, Corpus[Document] | Corpus[Question]] = {**packaged_texts, "mmlu-dev": mmlu}
    for name, corpus in loaded.items():
        assert described[name]["used"] == sum(p["count"] for p in described[name]["parts"].values())
        for part in PARTS:
            found = described[name]["parts"][part]
            assert found["ids"] == [item.id for item in corpus.parts[part]]
            assert found["fingerprint"] == corpus.fingerprint(part)
    news = described["news"]["parts"]["report"]
    assert news["characters"] == sum(len(d.text) for d in packaged_texts["news"].parts["report"])
    assert "characters" not in described["mmlu-dev"]["parts"]["report"]


# --- wikitext -----------------------------------------------------------------------------------

SENTENCE = "The aardvark is a medium-sized, burrowing, nocturnal mammal native to Africa."


@pytest.mark.parametrize(
    ("markup", "read"),
    [
        ("The '''aardvark''' ([[Help:IPA|aa]]) digs", "The aardvark (aa) digs"),
        ("The [[Aardvark|animal]] digs[[File:A.jpg|thumb|A [[caption]] here.]]", "The animal digs"),
        ("The aardvark ({{IPAc-en|a}}; {{lang|af|erdvark}}) digs", "The aardvark (erdvark) digs"),
        ("The aardvark ({{IPAc-en|a}}) digs", "The aardvark digs"),
        ('It digs.<ref name="x">{{cite book|title=Digging}}</ref> It', "It digs. It"),
        ('It digs<ref name="y" />{{citation needed|date=May 2016}} and', "It digs and"),
        ("It weighs {{convert|60|to|80|kg|lb}} and", "It weighs 60 to 80 kg and"),
        ("It lives on {{convert|1.5|km2|sqmi|abbr=on}} and", "It lives on 1.5 km² and"),
        ("It digs&nbsp;– H<sub>2</sub>O<!-- not milk -->", "It digs – H2O"),
        ("It, [http://example.org says one], digs", "It, says one, digs"),
    ],
)
def test_inline_markup_reads_on(markup: str, read: str):
    end = " for its food, which is ants and termites, at night."
    assert wikitext.prose(f"{markup}{end}") == f"{read}{end}"


@pytest.mark.parametrize(
    "dropped",
    [
        "{{Infobox mammal\n| name = Aardvark, which is a mammal that has a name.\n}}",
        "{|\n| A cell with a whole sentence, long enough to be taken for prose.\n|}",
        "* A list item that is a whole sentence, long enough to be taken for prose.",
        ": An indented line that is a whole sentence, long enough for prose.",
        "The formula <math>x^2</math> leaves a hole in this otherwise good sentence.",
        "The value {{unheard of|1}} leaves a hole in this otherwise good sentence.",
        "== A heading that is a whole sentence, long enough to be prose. ==",
        "The following are some examples of the aardvark's habits in the wild:",
        "[[Category:Mammals]]",
        "Too short.",
        "== See also ==\nA sentence that stands in a section without any real prose.",
        "== References ==\n=== Books ===\nA sentence in a subsection of the references, of some length.",
    ],
)
def test_what_is_no_prose_goes(dropped: str):
    article = f"{SENTENCE}\n\n{dropped}\n\n== Habits ==\n{SENTENCE}"
    assert wikitext.prose(article) == f"{SENTENCE}\n\n{SENTENCE}"


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["[[", "]]", "{{", "}}", "|", "{|", "|}", "<ref>", "</ref>", "''", "\n", "==", SENTENCE]
        )
    )
)
def test_broken_markup_never_comes_through(pieces: list[str]):
    text = wikitext.prose("".join(pieces))
    assert not any(markup in text for markup in ("[[", "]]", "{", "}", "|", "<", ">", "''"))


# --- local texts --------------------------------------------------------------------------------

WIKITEXT = (
    " \n = First = \n \n Some text . \n \n = = Section = = \n \n More . \n \n = Second = \n \n Other . \n"
)


def test_a_text_file_is_divided_by_paragraph(tmp_path: Path):
    (tmp_path / "a.txt").write_text("One\nline.\n\n\nTwo.\n \nThree.\r\n\r\nFour.", newline="")
    corpus = text_corpus(tmp_path, "a.txt")
    assert texts_of(corpus) == ["Four.", "One\nline.", "Three.", "Two."]
    assert (corpus.name, corpus.source, corpus.found, corpus.used) == ("mine", "a.txt", 4, 4)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_wikitext_is_divided_by_article(tmp_path: Path, ending: str):
    articles = "".join(
        f" = Title {i} = \n \n Text {i} ω \n = 1 rad and k = \n 2 . \n \n = = Section = = \n \n More . \n \n"
        for i in range(5)
    )
    (tmp_path / "wiki.tokens").write_text(articles, newline=ending)
    corpus = text_corpus(tmp_path, "wiki.tokens")
    assert corpus.used == 5
    assert {d.id for part in PARTS for d in corpus.parts[part]} == {f"{i:04d} Title {i}" for i in range(5)}
    assert all(text.count("= = Section = =") == 1 and "Text" in text for text in texts_of(corpus))


def test_a_text_file_that_is_a_part_is_whole(tmp_path: Path):
    for i, name in enumerate(["a.raw", "b.txt", "c.tokens"]):
        (tmp_path / name).write_bytes(f"\n {i} = \n \n\n é\t\x0c{i} \n".encode())
    corpus = text_corpus(tmp_path, parts("a.raw", "b.txt", str(tmp_path / "c.tokens")))
    assert [corpus.parts[part][0].text for part in PARTS] == [
        f"\n {i} = \n \n\n é\t\x0c{i} \n" for i in range(3)
    ]
    assert [len(corpus.parts[part]) for part in PARTS] == [1, 1, 1]
    assert "calibration: a.raw; selection: b.txt" in corpus.source


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("column", ["text", "sentence"])
def test_tables_of_texts(tmp_path: Path, suffix: str, column: str):
    lines = ['a, "quoted"\nline', "b\u2028still b", "", "c", "d", "e", "f"]
    write_table(tmp_path / f"t{suffix}", [{"other": i, column: line} for i, line in enumerate(lines)])
    corpus = text_corpus(tmp_path, f"t{suffix}")
    assert texts_of(corpus) == sorted(filter(None, lines))
    assert (corpus.found, corpus.used) == (7, 6)
    assert "1 blank rows passed over" in corpus.note
    assert rows_of(tmp_path, f"t{suffix}") == lines  # blank ones too: the protocol joins them


def test_lines_of_wikitext_are_the_rows_of_the_hub(tmp_path: Path):
    (tmp_path / "wiki.raw").write_text(WIKITEXT + " \n", newline="")
    rows = rows_of(tmp_path, "lines:wiki.raw")
    assert rows[:6] == ["", " = First = \n", "", " Some text . \n", "", " = = Section = = \n"]
    assert len(rows) == (WIKITEXT + " \n").count("\n")
    assert "".join(rows) == "".join(line for line in WIKITEXT.splitlines(True) if line.strip())


def test_other_lines_are_rows_without_blanks_around_them(tmp_path: Path):
    (tmp_path / "ptb.txt").write_text(" no it was n't black monday \n but while \n a b\n")
    assert rows_of(tmp_path, "lines:ptb.txt") == ["no it was n't black monday", "but while", "a b"]
    assert text_corpus(tmp_path, "lines:ptb.txt").used == 3
    with pytest.raises(InputError, match=r"'lines:gone\.txt' is not there; expected a file in \.txt \.raw"):
        text_corpus(tmp_path, "lines:gone.txt")


def test_rows_that_are_lines_of_wikitext_are_joined_into_articles(tmp_path: Path):
    lines = [line for i in range(6) for line in ("", f" = Title {i} = \n", "", f" Text {i} . \n")]
    write_table(tmp_path / "rows.jsonl", [{"text": line} for line in lines])
    corpus = text_corpus(tmp_path, "rows.jsonl")
    assert corpus.used == 6
    assert all(text.startswith("= Title") and "Text" in text for text in texts_of(corpus))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.txt", None, r"'gone\.txt' is not there; expected a file in \.txt .*there is: here\.md"),
        ("a.pdf", b"x", r"'a\.pdf' is a \.pdf file; expected .*\.parquet"),
        ("a.txt", b" \n\n ", r"'a\.txt' is an empty text"),
        ("a.txt", b"\xffx", r"a\.txt is not UTF-8 \(line 1: .* convert it to UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"te', r"'a\.jsonl': line 2 is not JSON"),
        ("a.jsonl", b'["x"]\n', r"'a\.jsonl': line 1 is '\[\"x\"\]'; expected an object"),
        ("a.jsonl", b"", r"'a\.jsonl' has no rows"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 5}\n', r"text of row 1 is 5; expected text"),
        ("a.jsonl", b'{"text": ""}\n{"text": " "}\n', r"has 2 rows, all without text"),
        ("a.csv", b"body,id\nx,1\n", r"has the columns body, id; expected .* text or sentence"),
        ("a.csv", b"text,id\nx,1\ny\n", r"'a\.csv': row 1 has 1 fields; expected 2"),
        ("a.csv", b'text\n"x" y\n', r"'a\.csv' is no readable CSV file"),
        ("a.parquet", b"PAR0", r"'a\.parquet' is no readable Parquet file"),
        (".", None, r"'\.' is a folder; expected a file .*here\.md"),
    ],
)
def test_bad_texts_are_explained(tmp_path: Path, name: str, content: bytes | None, message: str):
    (tmp_path / "here.md").write_text("")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"(?s)^params\.yaml: corpora\.texts\.mine: .*{message}"):
        text_corpus(tmp_path, name)


# --- local questions ----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_tables_of_questions_with_lists(tmp_path: Path, suffix: str):
    rows = [{**row, "subject": "art" if i < 4 else "law"} for i, row in enumerate(question_rows(8))]
    write_table(tmp_path / f"q{suffix}", rows)
    questions = questions_of(question_corpus(tmp_path, f"q{suffix}"))
    assert [q.id for q in questions] == [f"art-{i}" for i in range(4)] + [f"law-{i}" for i in range(4, 8)]
    assert all(q.choices == tuple(CHOICES) and q.answer == int(q.id[-1]) % 4 for q in questions)


def test_csv_of_questions_takes_letters_and_json_lists(tmp_path: Path):
    rows = [
        {"question": f"Which is {i}?", "choices": json.dumps(CHOICES), "answer": "ABCD"[i % 4]}
        for i in range(6)
    ]
    write_table(tmp_path / "colours.csv", rows)
    questions = questions_of(question_corpus(tmp_path, "colours.csv"))
    assert [(q.subject, q.answer) for q in questions] == [("colours", i % 4) for i in range(6)]
    assert {q.choices for q in questions} == {tuple(CHOICES)}


def test_folder_of_mmlu_files_with_and_without_header(tmp_path: Path):
    (tmp_path / "mmlu").mkdir()
    (tmp_path / "mmlu" / "moral_art_dev.csv").write_text(
        "\ufeffquestion,choice0,choice1,choice2,choice3,answer\n"
        + "".join(f'"Which, {i}?",1,2,3,4,{i % 4}\n' for i in range(4)),
        encoding="utf-8",
    )
    (tmp_path / "mmlu" / "law_test.csv").write_text("Who?,a,b,c,d,C\nWhom?,a,b,c,d,A\n")  # MMLU's release
    (tmp_path / "mmlu" / "README.txt").write_text("no questions")
    questions = questions_of(question_corpus(tmp_path, "mmlu"))
    assert [q.id for q in questions] == ["law-0", "law-1"] + [f"moral_art-{i}" for i in range(4)]
    assert (questions[0].question, questions[0].choices, questions[0].answer) == (
        "Who?",
        ("a", "b", "c", "d"),
        2,
    )
    assert (questions[3].question, questions[3].choices) == ("Which, 1?", ("1", "2", "3", "4"))


def test_question_parts_keep_their_sources_and_mix_subjects(tmp_path: Path):
    for part in PARTS:
        rows = [
            {**row, "question": f"{part} {i}", "subject": f"s{i // 10}"}
            for i, row in enumerate(question_rows(40))
        ]
        write_table(tmp_path / f"{part}.jsonl", rows)
    corpus = question_corpus(tmp_path, parts("calibration.jsonl", "selection.jsonl", "report.jsonl"))
    for part in PARTS:
        assert sorted(q.question for q in corpus.parts[part]) == sorted(f"{part} {i}" for i in range(40))
        assert len({q.subject for q in corpus.parts[part][:12]}) > 2
    assert (corpus.found, corpus.used) == (120, 120)


def test_selection_goes_without_what_the_report_asks_and_examples_stay(tmp_path: Path):
    for i, part in enumerate(PARTS):
        write_table(
            tmp_path / f"{part}.jsonl", [{**r, "question": f"{i} {r['question']}"} for r in question_rows(3)]
        )
    for part in ("calibration", "selection"):
        rows = [{**question_rows(1)[0], "question": f"2 Which colour is {i}?", "answer": 3} for i in (1, 2)]
        with (tmp_path / f"{part}.jsonl").open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    corpus = question_corpus(tmp_path, parts("calibration.jsonl", "selection.jsonl", "report.jsonl"))
    assert [len(corpus.parts[part]) for part in PARTS] == [5, 3, 3]
    assert all(q.question.startswith("1 ") for q in corpus.parts["selection"])
    assert "selection: 2 dropped that the report part asks" in corpus.note
    assert (corpus.found, corpus.used) == (13, 11)
    with pytest.raises(InputError, match=r"the report part asks all 3 questions .*'report\.jsonl'; expected"):
        question_corpus(tmp_path, parts("calibration.jsonl", "report.jsonl", "report.jsonl"))


def test_questions_remember_their_place_in_the_source(tmp_path: Path):
    write_table(tmp_path / "q.jsonl", question_rows(9))
    questions = questions_of(question_corpus(tmp_path, "q.jsonl"))
    assert [(q.id, q.index) for q in questions] == [(f"q-{i}", i) for i in range(9)]


GOOD = {"question": "Which?", "choices": CHOICES, "answer": 0}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**GOOD, "answer": 4}, r"row 0 has answer 4; expected 0 to 3 or A to D"),
        ({**GOOD, "answer": True}, r"row 0 has answer True"),
        ({**GOOD, "answer": None}, r"row 0 has answer None"),
        ({**GOOD, "choices": CHOICES[:3]}, r"row 0 has 3 choices \['red'.*expected four texts"),
        ({**GOOD, "choices": "red, green"}, r"row 0 has choices 'red, green'"),
        (
            {"question": "Which?", "answer": 0},
            r"has the columns question, answer; expected",
        ),
        ({**GOOD, "question": " "}, r"row 0 has question ' '"),
        ({"text": "x"}, r"has the columns text; expected question, choices"),
    ],
)
def test_bad_questions_are_explained(tmp_path: Path, row: dict[str, Any], message: str):
    write_table(tmp_path / "q.jsonl", [row])
    with pytest.raises(InputError, match=rf"^params\.yaml: corpora\.questions\.mine: 'q\.jsonl':? {message}"):
        question_corpus(tmp_path, "q.jsonl")


def test_bad_question_sources_list_what_is_there(tmp_path: Path):
    (tmp_path / "dev").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty.csv").write_text("question,answer\n")
    with pytest.raises(InputError, match=r"'\.' is a folder without \.csv files|'empty\.csv'"):
        question_corpus(tmp_path / "dev", ".")
    with pytest.raises(InputError, match=r"'notes\.txt' is a \.txt file; .*dev/, empty\.csv, notes\.txt"):
        question_corpus(tmp_path, "notes.txt")
    with pytest.raises(InputError, match=r"'empty\.csv' has no rows; expected questions"):
        question_corpus(tmp_path, "empty.csv")


# --- packages and the hub -----------------------------------------------------------------------


def test_unknown_packages_list_the_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(
        InputError, match=r"'package:gensim/poems' .*package:gensim/wikipedia, package:gensim/lee"
    ):
        text_corpus(tmp_path, "package:gensim/poems")
    with pytest.raises(InputError, match=r"'package:gensim/wikipedia' .*expected package:lm-eval/mmlu-dev"):
        question_corpus(tmp_path, "package:gensim/wikipedia")

    def absent(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(InputError, match=r"not installed: pip install gensim"):
        text_corpus(tmp_path, "package:gensim/lee-news")


def test_a_package_without_its_file_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Bare(metadata.PathDistribution):
        version = "9.9"

    bare = Bare(tmp_path / "gensim-9.9.dist-info")
    monkeypatch.setattr(metadata, "distribution", lambda name: bare)
    with pytest.raises(InputError, match=r"gensim 9\.9 has no gensim/test/test_data/lee_background\.cor"):
        text_corpus(tmp_path, "package:gensim/lee-news")


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local folder in the hub's format, with a cache of its own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "ptb"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        write_table(
            folder / f"{split}-00000-of-00001.parquet", [{"sentence": f" {split} {i} "} for i in range(6)]
        )
    return tmp_path


def test_hub_splits_keep_every_row(hub_folder: Path):
    corpus = text_corpus(hub_folder, parts("hub:ptb::train", "hub:ptb::validation", "hub:ptb:default:test"))
    assert [d.text for d in corpus.parts["report"]] == [f" test {i} " for i in range(6)]
    assert text_corpus(hub_folder, "hub:ptb::test").used == 6
    with pytest.raises(InputError, match=r"'hub:ptb::dev' could not be read .*Unknown split"):
        text_corpus(hub_folder, "hub:ptb::dev")


def test_hub_in_the_layout_of_its_parquet_conversions(hub_folder: Path):
    """A folder a configuration and split, as on the branch refs/convert/parquet."""
    for split in ("train", "validation", "test"):
        folder = hub_folder / "converted" / "penn_treebank" / split
        folder.mkdir(parents=True)
        write_table(folder / "0000.parquet", [{"sentence": f"{split} {i}"} for i in range(4)])
    for config in ("", "penn_treebank/{split}/*.parquet", "penn_treebank/{split}/0000.parquet"):
        sources = [
            f"hub:converted@refs/convert/parquet:{config.format(split=split)}:{split}"
            for split in ("train", "validation", "test")
        ]
        corpus = text_corpus(hub_folder, parts(*sources))
        assert [d.text for d in corpus.parts["selection"]] == [f"validation {i}" for i in range(4)]


def test_a_file_of_a_hub_repository_and_a_slice_of_it(hub_folder: Path):
    """C4's layout: one of many files, of which the first rows are taken."""
    folder = hub_folder / "c4" / "en"
    folder.mkdir(parents=True)
    for number in range(2):
        rows = [json.dumps({"text": f"page {number}.{i}", "url": "x"}) for i in range(30)]
        with gzip.open(folder / f"c4-validation.0000{number}-of-00002.json.gz", "wt") as file:
            file.write("\n".join(rows))
    source = "hub:c4:en/c4-validation.00000-of-00002.json.gz:validation[:11]"
    assert rows_of(hub_folder, source) == [f"page 0.{i}" for i in range(11)]


def test_the_revision_reaches_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    asked: list[Any] = []

    def load(name: str, config: str | None, **options: Any) -> datasets.Dataset:
        asked.append((name, config, options))
        return datasets.Dataset.from_list([{"sentence": f"a {i}"} for i in range(9)])

    monkeypatch.setattr(datasets, "load_dataset", load)
    text_corpus(tmp_path, "hub:ptb-text-only/ptb_text_only@refs/convert/parquet::validation")
    text_corpus(tmp_path, "hub:Salesforce/wikitext:wikitext-2-raw-v1:test")
    assert asked == [
        (
            "ptb-text-only/ptb_text_only",
            None,
            {"data_files": None, "split": "validation", "revision": "refs/convert/parquet"},
        ),
        (
            "Salesforce/wikitext",
            "wikitext-2-raw-v1",
            {"data_files": None, "split": "test", "revision": None},
        ),
    ]


def test_hub_questions(hub_folder: Path):
    (hub_folder / "mmlu").mkdir()
    rows = [{**row, "subject": "art"} for row in question_rows(9)]
    write_table(hub_folder / "mmlu" / "validation.parquet", rows)
    questions = questions_of(question_corpus(hub_folder, "hub:./mmlu::validation"))
    assert [(q.id, q.answer) for q in questions] == [(f"art-{i}", i % 4) for i in range(9)]


@pytest.mark.parametrize("source", ["hub:", "hub:cais/mmlu", "hub:cais/mmlu:all", "hub:cais/mmlu:all:"])
def test_hub_without_a_split_is_explained(tmp_path: Path, source: str):
    with pytest.raises(
        InputError, match=rf"'{source}' names no split; expected hub:NAME\[@REVISION\]:CONFIG:SPLIT"
    ):
        question_corpus(tmp_path, source)


def test_an_unreachable_hub_says_what_to_put_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(InputError, match=r"'hub:me/own:x:test' .*ConnectionError: Couldn't") as e:
        text_corpus(tmp_path, "hub:me/own:x:test")
    for advice in (
        "local file",
        "hub:Salesforce/wikitext:wikitext-2-raw-v1:validation",
        "hub:ptb-text-only/ptb_text_only@refs/convert/parquet::validation",
    ):
        assert advice in str(e.value)
    with pytest.raises(InputError, match="hub:cais/mmlu:all:validation"):
        question_corpus(tmp_path, "hub:me/own:all:test")


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("hub:wikitext:wikitext-2-raw-v1:test", "hub:Salesforce/wikitext:wikitext-2-raw-v1:test"),
        (
            "hub:ptb_text_only:penn_treebank:validation",
            "hub:ptb-text-only/ptb_text_only@refs/convert/parquet::validation",
        ),
        (
            "hub:ptb-text-only/ptb_text_only:penn_treebank:test",
            "hub:ptb-text-only/ptb_text_only@refs/convert/parquet::test",
        ),
        ("hub:c4:en:validation", "hub:allenai/c4:en/c4-validation.00000-of-00008.json.gz:validation[:1100]"),
        ("hub:lukaemon/mmlu:all:dev", "hub:cais/mmlu:all:dev"),
    ],
)
def test_what_has_moved_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, place: str):
    import datasets

    def gone(*_: Any, **__: Any) -> None:
        raise datasets.exceptions.DatasetNotFoundError("Dataset doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", gone)
    with pytest.raises(InputError, match=f"has moved: put {re.escape(place)} in its place"):
        text_corpus(tmp_path, source)
    with pytest.raises(InputError, match="Give a local file instead"):  # and what it names is not moved again
        text_corpus(tmp_path, place)


def test_a_loading_script_is_explained(hub_folder: Path):
    (hub_folder / "mine").mkdir()
    (hub_folder / "mine" / "mine.py").write_text("raise SystemExit")
    message = r"A loading script is not run; .* put hub:mine@refs/convert/parquet::test in its place"
    with pytest.raises(InputError, match=message):
        text_corpus(hub_folder, "hub:mine:all:test")


def test_sources_are_read_without_importing_heavy_packages():
    import subprocess
    import sys

    code = (
        "import sys; from stages.evaluate.text import corpora; "
        "print([m for m in ('torch', 'gensim', 'lm_eval', 'datasets', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
