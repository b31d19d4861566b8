"""What models say: greedy answers against transformers' own, and divergences by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import GenerationConfig

from stages.architecture import Architecture
from stages.evaluate.text.prompts import (
    chat,
    check_prompts,
    check_template,
    prompt_tokens,
    stops,
    template_of,
)
from stages.export import answers
from stages.files import InputError
from tests import tiny
from tests.conftest import TinyFolder
from tests.export.deployable import trained_tokenizer

PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16]]


def test_answers_are_those_of_transformers_whatever_stands_beside(tiny_folder: TinyFolder) -> None:
    folder = tiny_folder("llama")
    network, model = tiny.network_of(folder), tiny.reference(folder)
    found = answers.greedy(network, network.shape.dense(), PROMPTS, 12, ())
    for prompt, answer in zip(PROMPTS, found, strict=True):
        expected = tiny.greedy(model, torch.tensor([prompt]), eos_token_id=None)[0].tolist()
        assert answer == expected
    alone = [answers.greedy(network, network.shape.dense(), [p], 12, ())[0] for p in PROMPTS]
    assert alone == found


def test_an_answer_ends_before_its_stop(tiny_folder: TinyFolder) -> None:
    network = tiny.network_of(tiny_folder("llama"))
    whole = answers.greedy(network, network.shape.dense(), PROMPTS, 12, ())
    stop = whole[0][4]
    ended = answers.greedy(network, network.shape.dense(), PROMPTS, 12, {stop})
    assert ended == [row[: row.index(stop)] if stop in row else row for row in whole]
    assert answers.greedy(network, network.shape.dense(), PROMPTS, 0, ()) == [[], [], []]


@pytest.mark.parametrize("at_once", [1, 4, 256])
def test_divergence_is_that_of_torch_and_of_itself_nothing(
    tiny_folder: TinyFolder, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "AT_ONCE", at_once)
    folder = tiny_folder("llama")
    network, tokens = tiny.network_of(folder), torch.tensor(PROMPTS[2])
    dense, pruned = network.shape.dense(), Architecture.from_json([[1, 1, 8]] * network.shape.layers)
    states, others = (answers.last_states(network, a, tokens) for a in (dense, pruned))
    p = tiny.reference_logits(tiny.reference(folder), tokens[None])[0].log_softmax(-1)
    q = tiny.elastic_logits(network, pruned, tokens[None])[0].log_softmax(-1)
    expected = F.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean()
    assert math.isclose(answers.divergence(network, states, network, others), float(expected), rel_tol=1e-3)
    assert expected > 1e-3
    assert abs(answers.divergence(network, states, network, states)) < 1e-6


def test_a_prompt_is_a_turn_of_a_chat_where_there_is_a_template() -> None:
    tokenizer = trained_tokenizer(bos=True)
    turn = [{"role": "user", "content": "llamas"}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    found = prompt_tokens(tokenizer, "llamas")
    assert tokenizer.decode(found) == text
    assert found[0] != tokenizer.bos_token_id  # which the template writes if it is to stand there
    tokenizer.chat_template = None
    assert prompt_tokens(tokenizer, "llamas") == tokenizer("llamas")["input_ids"]


def test_prompts_that_cannot_be_asked_are_told_before_any_work() -> None:
    tokenizer = trained_tokenizer()
    check_prompts(tokenizer, ["llamas"], 100)
    with pytest.raises(InputError, match=r"the prompt 'llamas' has \d+ tokens; expected from 1 to 1, as"):
        check_prompts(tokenizer, ["llamas"], 2)
    tokenizer.chat_template = "{{ raise_exception('no users here') }}"
    with pytest.raises(InputError, match=r"does not take 'llamas' .*no users here.*export.answers to null"):
        check_prompts(tokenizer, ["llamas"], 100)


def test_a_template_that_opens_no_conversation_is_told() -> None:
    tokenizer = trained_tokenizer()
    check_template(tokenizer)
    tokenizer.chat_template = "{{ raise_exception('no users here') }}"
    with pytest.raises(InputError, match=r"no users here.*set evaluate.calibration.conversations to 0, or"):
        check_template(tokenizer)
    tokenizer.chat_template = "{{ bos_token }}"
    with pytest.raises(InputError, match=r"calibration.conversations: .*leaves out what is said"):
        check_template(tokenizer)


def test_a_chat_opens_as_its_template_says_and_ends_at_its_stops() -> None:
    tokenizer = trained_tokenizer()
    whole, asked = chat(tokenizer, ["llamas", "graze"]), chat(tokenizer, ["llamas"], asks=True)
    assert whole.startswith(asked)
    found = template_of(tokenizer)
    assert asked == found.opening + "llamas" + found.between
    assert whole == asked + "<user>graze" + found.ending
    assert stops(tokenizer, None) == {tokenizer.eos_token_id}
    assert stops(tokenizer, GenerationConfig(eos_token_id=[7, 9])) == {7, 9, tokenizer.eos_token_id}
