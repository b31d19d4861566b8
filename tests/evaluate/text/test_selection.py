"""What is chosen of a part, and how its protocol is told."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from stages.evaluate.text.corpora import Question
from stages.files import InputError
from tests import tiny
from tests.evaluate.measure.test_evaluator import MEASUREMENT, QUESTIONS, corpus, halved, selected

EXAMPLES = tuple(
    Question(f"e{n}", "anatomy", f"Which example is {n}?", ("a", "b", "c", "d"), n % 4, n) for n in range(9)
)


def quiz() -> dict[str, Any]:
    plain = corpus("quiz", *QUESTIONS)
    return {"quiz": replace(plain, parts={**plain.parts, "calibration": (*EXAMPLES, QUESTIONS[2])})}


def changed(**update: Any) -> Any:
    return MEASUREMENT.model_copy(update=update)


def test_both_formats_ask_the_same_questions() -> None:
    found = selected(questions=quiz(), measurement=changed(questions=3, question_tokens=200))
    assert {item.id for item in found.items["quiz"]} == {item.id for item in found.items["quiz.letter"]}
    assert len(found.items["quiz"]) == 3
    everything = selected(questions=quiz(), measurement=changed(questions=None, question_tokens=None))
    assert len(everything.items["quiz.letter"]) == len(QUESTIONS)


@pytest.mark.parametrize("part", ["selection", "report", "calibration"])
def test_examples_are_of_the_calibration_part(part: Any) -> None:
    found = selected(questions=quiz(), measurement=changed(questions=None), part=part)
    pool = [EXAMPLES[0], QUESTIONS[2], *EXAMPLES[1:]]  # by their index
    for item in found.items["quiz.letter"]:
        blocks = str(tiny.byte_tokenizer().decode(item.prompt)).split("\n\n")
        *shown, asked = [block.split("\n")[0] for block in blocks[1:]]
        assert shown == [q.question for q in pool if q.question != asked][:5]


def test_the_protocol_is_told_with_its_counts() -> None:
    update = {"sequence_length": 9, "stride": 4, "windows": 5, "bos": "window", "join": " ", "questions": 2}
    found = selected(
        texts=halved(), questions=quiz(), measurement=changed(**update), part="report", context_tokens=300
    )
    entries = json.loads(json.dumps(found.protocol()))
    assert [entry["corpus"] for entry in entries] == ["fables", "news", "quiz", "quiz.letter"]
    assert entries[0] == {
        "corpus": "fables",
        "part": "report",
        "protocol": "standard",
        "join": " ",
        "sequence_length": 9,
        "stride": 4,
        "bos": "window",
        "bos_tokens": 5,
        "windows": 5,
        "predicted_tokens": 20,
        "bytes": 20,
    }
    assert entries[2]["questions"] == 2
    assert entries[2]["questions_by_examples"] == {"0": 2}
    assert sum(entries[3]["questions_by_examples"].values()) == 2
    assert "5" not in entries[3]["questions_by_examples"]  # the context holds fewer
    words = found.words()
    assert words.keys() == {"fables", "news", "quiz", "quiz.letter"}
    for told in ("report part", "standard", "5 windows of 9 tokens", "one every 4", "BOS in each", "' '"):
        assert told in words["fables"]
    assert "20 predicted tokens, 20 bytes" in words["fables"]
    assert "zero-shot" in words["quiz"]
    assert "by letter" in words["quiz.letter"]


def test_whether_there_is_a_bos_is_told_and_not_only_asked() -> None:
    plain = selected(measurement=changed(bos="tokenizer"))
    assert [entry["bos_tokens"] for entry in plain.protocol()[:2]] == [0, 0]
    assert "no BOS" in plain.words()["news"]
    with_it = selected(measurement=changed(bos="tokenizer"), tokenizer=tiny.bos_tokenizer())
    assert [entry["bos_tokens"] for entry in with_it.protocol()[:2]] == [1, 1]
    assert "one BOS before the text" in with_it.words()["news"]
    assert int(with_it.windows["news"].tokens[0, 0]) == 1


def test_every_text_is_measured_by_the_join_that_is_asked_for() -> None:
    plain, joined = (
        selected(texts=halved(), measurement=changed(join=join, windows=None)).windows for join in ("", " | ")
    )
    assert plain["news"].tokens.equal(selected(measurement=changed(windows=None)).windows["news"].tokens)
    assert not joined["news"].tokens.equal(plain["news"].tokens)


def test_windows_beyond_the_context_are_refused() -> None:
    with pytest.raises(InputError, match="sequence_length is 16, and the model's context has 15"):
        selected(context_tokens=15)
