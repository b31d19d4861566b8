"""Conversations: the model's own words in its template, enough of them, written once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stages.config.params import Calibration
from stages.evaluate import workbench
from stages.evaluate.calibrate import conversations as module
from stages.evaluate.calibrate.conversations import HELD_OUT, Conversations, conversations
from stages.evaluate.network.checkpoint import Checkpoint
from stages.evaluate.text.prompts import chat
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
    monkeypatch.setattr(module, "TURN", 10)
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
    assert tokens(loaded, found.calibration[:-40]) < 3 * 64  # and not many more
    turns = []
    for text in (*found.report, *found.calibration):
        assert text.startswith("<bos>user\n")
        turn, _, rest = text.removeprefix("<bos>user\n").partition("<eos>\n<bos>assistant\n")
        assert turn.strip() == turn != ""
        assert rest.removesuffix("<eos>\n").strip()
        turns.append(turn)
    assert len(set(turns)) == len(turns)
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
    assert (list(read.calibration), list(read.report)) == (list(found.calibration), list(found.report))
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
        assert conversations(plain, CPU, ASKED, tmp_path / "plain.json").calibration in ((), [])
    assert capsys.readouterr().out.count("has no chat template: no conversations calibrate it") == 1


def test_an_answer_is_what_the_model_says_whatever_is_written_beside(
    loaded: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn from next to no warmth it is the likeliest, as transformers finds it for each turn alone."""
    monkeypatch.setattr(module, "WARMTH", (1.0, 1e-4))
    model, plain = (tiny.reference(loaded.folder) for _ in range(2))
    written = module._Writer(model, loaded, CPU).write(6, seed=3)
    assert len({len(turn) for turn, _ in written}) > 1, "nothing was padded"
    for turn, whole in written:
        asked = loaded.tokenizer(chat(loaded.tokenizer, [turn], asks=True), add_special_tokens=False)
        given = torch.tensor([asked["input_ids"]])
        said = tiny.greedy(plain, given, max_new_tokens=16, min_new_tokens=0, eos_token_id=2)[0]
        answer = loaded.tokenizer.decode(said, skip_special_tokens=True).strip()
        assert whole == chat(loaded.tokenizer, [turn, answer])


def test_a_model_that_says_nothing_is_told_before_more_is_done(
    loaded: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "stops", lambda *_: set(range(loaded.shape.vocabulary)))
    with pytest.raises(
        InputError, match=r"of \d+ conversations .* 0 came to something, 0 tokens of 192; set"
    ):
        conversations(loaded, CPU, ASKED, tmp_path / "c.json")
    assert not (tmp_path / "c.json").exists()


def test_windows_of_conversations_follow_those_of_the_texts(loaded: Checkpoint, tmp_path: Path) -> None:
    found = conversations(loaded, CPU, ASKED, tmp_path / "c.json")
    measured = COMMITTED.evaluate.measurement.text
    rows = workbench._conversation_windows(loaded, found.calibration, ASKED, measured)
    assert rows.shape == (3, 64)
    together = loaded.tokenizer("".join(found.calibration), add_special_tokens=False)["input_ids"]
    assert rows.flatten().tolist() == together[: 3 * 64]
