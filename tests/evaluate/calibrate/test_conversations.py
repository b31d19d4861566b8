"""Conversations: the model's own words in its template, enough of them, written once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from stages.config.params import Calibration
from stages.evaluate import workbench
from stages.evaluate.calibrate import conversations as module
from stages.evaluate.calibrate.conversations import HELD_OUT, Conversations, conversations
from stages.evaluate.network.checkpoint import Checkpoint
from stages.evaluate.text.prompts import chat, template_of
from stages.files import InputError
from tests import tiny
from tests.small import COMMITTED

CPU = torch.device("cpu")
ASKED = Calibration(samples=4, sequence_length=64, conversations=3)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tiny.write_model(tmp_path_factory.mktemp("chats"), "llama")
    return tiny.load(tiny.teach_chats(folder))


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TURN", 60)
    monkeypatch.setattr(module, "ANSWER", 16)


def tokens(loaded: Checkpoint, texts: Any) -> int:
    return sum(len(loaded.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)


def test_conversations_are_whole_chats_no_two_alike_and_some_are_held_out(
    loaded: Checkpoint, tmp_path: Path
) -> None:
    before = torch.random.get_rng_state()
    found = conversations(loaded, CPU, ASKED, tmp_path / "c.json")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len(found.report) == HELD_OUT
    assert tokens(loaded, found.calibration) >= 3 * 64
    assert tokens(loaded, found.calibration[:-8]) < 3 * 64  # and not many more: a batch at most
    turns, lengths = [], []
    for text in (*found.report, *found.calibration):
        assert text.startswith("<bos>user\n")
        turn, _, rest = text.removeprefix("<bos>user\n").partition("<eos>\n<bos>assistant\n")
        assert turn.strip() == turn != ""
        answer = rest.removesuffix("<eos>\n")
        assert answer.strip() == answer != ""
        ended = answer != rest
        assert ended or tokens(loaded, [answer]) > 8, "an answer that was not cut has its end"
        lengths.append((ended, tokens(loaded, [answer])))
        turns.append(turn)
    assert len(set(turns)) == len(turns)
    assert {ended for ended, _ in lengths} == {True, False}
    again = conversations(loaded, CPU, ASKED, tmp_path / "other.json")
    assert again == found


def test_what_was_written_is_read_until_something_else_is_asked_for(
    loaded: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.json"
    found, written = conversations(loaded, CPU, ASKED, path), path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(module, "_written", None)
        read = conversations(loaded, CPU, ASKED, path)
    assert read == found
    more = ASKED.model_copy(update={"conversations": 6})
    assert tokens(loaded, conversations(loaded, CPU, more, path).calibration) >= 6 * 64
    path.write_bytes(written[:-20])
    assert conversations(loaded, CPU, ASKED, path) == found
    assert "c.json is not valid JSON" in capsys.readouterr().out
    assert path.read_bytes() == written


def test_nothing_is_written_without_a_template_or_a_wish(
    loaded: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    none = ASKED.model_copy(update={"conversations": 0})
    assert conversations(loaded, CPU, none, tmp_path / "none.json") == Conversations()
    assert capsys.readouterr().out == ""
    plain = tiny.load(tiny.write_model(tmp_path / "plain", "llama"))
    for _ in range(2):
        assert conversations(plain, CPU, ASKED, tmp_path / "plain.json") == Conversations()
    assert capsys.readouterr().out.count("has no chat template: no conversations calibrate it") == 1


class Scripted:
    """In a model's place: each turn and each answer goes on as written here, padded as transformers pads."""

    def __init__(self, writer: module._Writer, *lines: Sequence[str]) -> None:
        self.device = CPU
        self.given: list[list[str]] = []
        self._writer, self._lines = writer, iter(lines)

    def generate(self, given: torch.Tensor, **_: Any) -> torch.Tensor:
        decode = self._writer.loaded.tokenizer.decode
        self.given.append([decode(row).removeprefix("<pad>") for row in given])
        rows = [self._writer.tokens(line) for line in next(self._lines)]
        padded = [row + [0] * (max(map(len, rows)) - len(row)) for row in rows]
        return torch.cat((given, torch.tensor(padded)), 1)


def writer_of(loaded: Checkpoint, template: str) -> module._Writer:
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.chat_template = template
    return module._Writer(replace(loaded, tokenizer=tokenizer), template_of(tokenizer))


BRACKETS = (
    "{% for message in messages %}{% if message['role'] == 'user' %}[ASK]{{ message['content'] }}[/ASK]"
    "{% else %}{{ message['content'] }}<eos>{% endif %}{% endfor %}"
)
HEADS = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TEMPLATES = {
    "its own end of a turn": (tiny.CHATML, "two?<eos>", "four.<eos>"),
    "an end that is no token": (BRACKETS, "two?[/ASK]Two is", "four.<eos>[ASK]"),
    "heads alone": (HEADS, "two?\n<|assistant|>\nTwo is", "four.<eos>\n<|user|>"),
    "another token that is no text": (BRACKETS, "two?<unk>more", "four.<bos>"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_turns_and_answers_end_where_the_template_or_the_model_ends_them(
    loaded: Checkpoint, name: str
) -> None:
    template, turn, answer = TEMPLATES[name]
    writer = writer_of(loaded, template)
    model = Scripted(writer, [turn, "never, never does this one end", "<eos>"], [answer])
    assert writer.write(model, 3, 0) == [("two?", chat(writer.loaded.tokenizer, ["two?", "four."]))]
    assert model.given[1] == [chat(writer.loaded.tokenizer, ["two?"], asks=True)]


def test_an_answer_that_was_cut_has_no_end(loaded: Checkpoint) -> None:
    writer = writer_of(loaded, tiny.CHATML)
    model = Scripted(writer, ["two?<eos>", "six?<eos>"], ["and so on", "four.<eos>"])
    whole, cut = chat(loaded.tokenizer, ["six?", "four."]), chat(loaded.tokenizer, ["two?", "and so on"])
    assert writer.write(model, 2, 0) == [("two?", cut.removesuffix("<eos>\n")), ("six?", whole)]


def test_a_chat_is_the_same_tomorrow_and_without_a_thought() -> None:
    tokenizer = tiny.byte_tokenizer()
    tokenizer.chat_template = (
        "\n{{ strftime_now('%Y') }}"
        "{% if enable_thinking is defined and not enable_thinking %} quietly{% endif %}: "
        "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    )
    assert chat(tokenizer, ["llamas"]) == "\n26 Jul 2024 quietly: llamas"


def test_an_answer_is_what_the_model_says_whatever_is_written_beside(
    loaded: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn from next to no warmth it is the likeliest, as transformers finds it for each turn alone."""
    monkeypatch.setattr(module, "WARMTH", (1.0, 1e-4))
    model, plain = (tiny.reference(loaded.folder) for _ in range(2))
    writer = writer_of(loaded, tiny.CHATML)
    written = writer.write(model, 24, seed=3)
    assert len({len(turn) for turn, _ in written}) > 1, "nothing was padded"
    for turn, whole in written:
        asked = chat(loaded.tokenizer, [turn], asks=True)
        given = torch.tensor([writer.tokens(asked)])
        ends = sorted(writer.ends)
        said = tiny.greedy(plain, given, max_new_tokens=16, min_new_tokens=0, eos_token_id=ends)[0]
        answer = loaded.tokenizer.decode(said, skip_special_tokens=True).strip()
        assert whole.removesuffix("<eos>\n") == asked + answer


def test_a_model_that_says_nothing_is_told_before_more_is_done(
    loaded: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "stops", lambda *_: set(range(loaded.shape.vocabulary)))
    with pytest.raises(
        InputError, match=r"of \d+ conversations .* 0 came to something, 0 tokens of 192; set"
    ):
        conversations(loaded, CPU, ASKED, tmp_path / "c.json")
    assert not (tmp_path / "c.json").exists()


def test_a_later_stage_writes_none(loaded: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    found = conversations(loaded, CPU, ASKED, path)
    assert conversations(loaded, CPU, ASKED, path, may_write=False) == found
    more = ASKED.model_copy(update={"conversations": 6})
    with pytest.raises(InputError, match=r"holds no conversations .* of 384 tokens .*Run `dvc repro ev"):
        conversations(loaded, CPU, more, path, may_write=False)
    other = replace(loaded, generation_config=GenerationConfig(eos_token_id=9))
    with pytest.raises(InputError, match="holds no conversations of this model"):
        conversations(other, CPU, ASKED, path, may_write=False)


def test_windows_of_conversations_follow_those_of_the_texts(loaded: Checkpoint, tmp_path: Path) -> None:
    found = conversations(loaded, CPU, ASKED, tmp_path / "c.json")
    measured = COMMITTED.evaluate.measurement.text
    rows = workbench._conversation_windows(loaded, found.calibration, ASKED, measured)
    assert rows.shape == (3, 64)
    together = loaded.tokenizer("".join(found.calibration), add_special_tokens=False)["input_ids"]
    assert rows.flatten().tolist() == together[: 3 * 64]
