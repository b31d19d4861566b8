"""What models say: greedy answers against transformers' own, and divergences by hand."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.architecture import Architecture
from stages.export import answers
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


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000))
def test_divergence_is_that_of_torch_and_never_negative(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    p, q = (torch.randn(5, 30, generator=generator).log_softmax(-1) for _ in range(2))
    found = answers.divergences(p, q)
    expected = F.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean()
    assert math.isclose(found, float(expected), rel_tol=1e-5)
    assert found > 0
    assert abs(answers.divergences(p, p)) < 1e-6


def test_log_probabilities_are_the_models(tiny_folder: TinyFolder) -> None:
    folder = tiny_folder("llama")
    network, tokens = tiny.network_of(folder), torch.tensor(PROMPTS[2])
    found = answers.log_probabilities(network, network.shape.dense(), tokens)
    expected = tiny.reference_logits(tiny.reference(folder), tokens[None])[0].log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    pruned = Architecture.from_json([[1, 1, 8]] * network.shape.layers)
    other = answers.log_probabilities(network, pruned, tokens)
    assert answers.divergences(found, other) > 1e-3


def test_a_prompt_is_a_turn_of_a_chat_where_there_is_a_template() -> None:
    tokenizer = trained_tokenizer(bos=True)
    turn = [{"role": "user", "content": "llamas"}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    found = answers.prompt_tokens(tokenizer, "llamas")
    assert tokenizer.decode(found) == text
    assert found[0] != tokenizer.bos_token_id  # which the template writes if it is to stand there
    tokenizer.chat_template = None
    assert answers.prompt_tokens(tokenizer, "llamas") == tokenizer("llamas")["input_ids"]
