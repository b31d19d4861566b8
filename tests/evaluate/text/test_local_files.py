"""What lies where a corpus should be: odd names, kinds of file, formats, encodings and packages."""

from __future__ import annotations

import os
import socket
from importlib import metadata
from pathlib import Path

import pytest

from stages.config.params import Corpora, Division
from stages.evaluate.text import corpora, local_files
from stages.files import InputError

DIVISION = Division(calibration=0.3, selection=0.35, report=0.35)
TEXT = "\n\n".join(f"Paragraph {i}." for i in range(12))


def note(root: Path, source: str) -> str:
    section = Corpora(division=DIVISION, texts={"mine": source}, questions={})
    return corpora.load_texts(section, root)["mine"].note


def asked(root: Path, source: str) -> corpora.Corpus[corpora.Question]:
    section = Corpora(division=DIVISION, texts={"unread": "x"}, questions={"mine": source})
    return corpora.load_questions(section, root)["mine"]


@pytest.mark.parametrize("prefix", ["", "lines:", "hub:"])
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("~nobody-is-called-so/x.txt", "cannot be looked for: "),
        ("x" * 5000 + ".txt", r"'x{80}'… \(5,004 characters\) cannot be looked for: File name too long"),
        ("nul\0.txt", r"nul\\x00\.txt"),
    ],
)
def test_names_that_no_file_can_have(tmp_path: Path, prefix: str, source: str, message: str) -> None:
    source = f"{prefix}{source}" + (":config:split" if prefix == "hub:" else "")
    with pytest.raises(InputError, match=rf"^params\.yaml: corpora\.texts\.mine: .*{message}"):
        note(tmp_path, source)
    with pytest.raises(InputError, match=r"^params\.yaml: corpora\.questions\.mine: "):
        asked(tmp_path, source)


def test_what_is_no_file_is_named_and_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.txt").mkdir()
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "nowhere.txt").symlink_to(tmp_path / "gone")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # a socket's path is short
        server.bind("socket.txt")
    for name, what in (
        ("folder", "a folder"),
        ("pipe", "a named pipe"),
        ("nowhere", "a link to what is not there"),
        ("loop", "a link to what is not there"),
        ("zero", "a device"),
        ("socket", "a socket"),
    ):
        with pytest.raises(InputError, match=rf"'{name}\.txt' is {what}; expected a file in \.txt"):
            note(tmp_path, f"{name}.txt")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "q.csv").write_text("question\n")

    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(InputError, match=r"'a\.txt': a\.txt cannot be read: Permission denied"):
        note(tmp_path, "a.txt")
    with pytest.raises(InputError, match=r"'q\.csv': q\.csv cannot be read: Permission denied"):
        asked(tmp_path, "q.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x1f\x8b\x08\x00\xff\xff", "it is gzip data; unpack it"),
        (b"BZh91AY&SY\xff\xff", "it is bzip2 data; unpack it"),
        (b"PK\x03\x04\xff\xff", "it is a zip archive; unpack it"),
        (b"PAR1\xff\xff", r"it is a Parquet table; name it \.parquet"),
        (TEXT.encode("utf-16-le"), "NUL characters .* in UTF-16 without a mark"),
        (TEXT.encode() + bytes(100), "holds 100 NUL characters"),
        (b"One.\n\nTwo.\n\xe9t\xe9", r"is not UTF-8 \(line 4: .*convert it to UTF-8 \(iconv"),
        (b"\xff\xfea\x00\x00\xd8", r"is not UTF-16 \(line 1"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "run `git lfs pull`"),
    ],
)
def test_what_is_no_text_says_what_it_is(tmp_path: Path, content: bytes, message: str) -> None:
    for name in ("a.txt", "a.csv", "a.jsonl"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"(?s){message}"):
            note(tmp_path, name)


def test_odd_characters_are_kept_and_told(tmp_path: Path) -> None:
    text = TEXT + "\n\nEnd\0 \x85 \x0c \u200b\u200d \ufffd."
    (tmp_path / "a.txt").write_text(text)
    said = note(tmp_path, "a.txt")
    for count in ("3 control characters kept", "2 characters without width kept", "1 U+FFFD, which a wrong"):
        assert count in said
    (tmp_path / "a.jsonl").write_text(
        "".join(f'{{"text": "Row {i}\\r\\n\\ufeff"}}\n' for i in range(9)) + '{"text": "half \\ud800"}\n'
    )
    said = note(tmp_path, "a.jsonl")
    for count in (
        "9 line ends CRLF",
        "9 byte order marks left out",
        "1 halves of surrogate pairs read as U+F",
    ):
        assert count in said


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"BZh9", b"questions: [", b"a: " + b"[" * 3000])
def test_damaged_files_of_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    class Damaged(metadata.PathDistribution):
        version = "9.9"

    test_data = tmp_path / "gensim/test/test_data"
    tasks = tmp_path / "lm_eval/tasks/mmlu/flan_cot_fewshot"
    for folder in (test_data, tasks):
        folder.mkdir(parents=True)
    name = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    (test_data / name).write_bytes(content)
    (test_data / "lee_background.cor").write_bytes(b"Story.\n\xff")
    (tasks / "mmlu_art.yaml").write_bytes(content)
    monkeypatch.setattr(metadata, "distribution", lambda name: Damaged(tmp_path / f"{name}-9.9.dist-info"))
    for source in ("package:gensim/wikipedia", "package:gensim/lee-news"):
        with pytest.raises(InputError, match=rf"'{source}' is damaged \(.* pip install --force-reinstall"):
            note(tmp_path, source)
    with pytest.raises(InputError, match=r"'package:lm-eval/mmlu-dev' is damaged"):
        asked(tmp_path, "package:lm-eval/mmlu-dev")


def test_a_folder_of_questions_passes_over_what_is_none_and_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "mmlu"
    folder.mkdir()
    rows = "".join(f"Which is {i}?,a,b,c,d,{'ABCD'[i % 4]}\n" for i in range(9))
    (folder / "LAW_test.CSV").write_text(rows)
    (folder / "._law_test.csv").write_bytes(b"\0\5\x16\7")  # what a Mac leaves beside a file
    (folder / "README.md").write_text("Questions.")
    found = asked(tmp_path, "mmlu")
    assert (found.found, found.used) == (9, 9)
    assert "2 other files passed over" in found.note


def test_choices_that_pandas_takes_for_missing_stay_in_csv_files_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "quiz").mkdir()
    (tmp_path / "quiz" / "test.csv").write_text(
        "question,A,B,C,D,answer\n" + "".join(f"Which is {i}?,None,NA,nan,null,{i % 4}\n" for i in range(9))
    )
    found = asked(tmp_path, "hub:quiz::test")
    assert {q.choices for part in found.parts.values() for q in part} == {("None", "NA", "nan", "null")}


@pytest.mark.parametrize("name", ["schema", "version", "checksum"])
def test_a_corpus_is_not_called_as_a_field_of_its_division(name: str) -> None:
    with pytest.raises(ValueError, match=f"a corpus is called '{name}', as a field of division.json is"):
        Corpora(division=DIVISION, texts={name: "a.txt"}, questions={})


def test_a_line_that_is_null_is_passed_over_and_counted(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\nnull\n{"text": "b"}\n')
    found = local_files.read_table(tmp_path / "rows.jsonl", "rows.jsonl", {"text"})
    assert [row["text"] for row in found.rows] == ["a", "b"]
    assert found.counts["rows that are null passed over"] == 1
