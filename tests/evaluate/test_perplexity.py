"""Perplexity against transformers' loss with labels, on windows cut by hand."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest
import torch

from stages.evaluate import perplexity
from stages.evaluate.corpora import Document
from stages.evaluate.elastic import ElasticNetwork
from stages.files import InputError
from tests import tiny
from tests.conftest import TinyFolder

DOCUMENTS = [
    Document("a", "It was a bright cold day in April, and the clocks were striking thirteen."),
    Document("b", "Größe matters: naïve façades cost € 5."),
    Document("c", "All happy families are alike; each unhappy family is unhappy in its own way."),
]
WHERE = "corpora.texts.mine, part selection,"


@pytest.fixture(scope="module")
def folder(tiny_folder: TinyFolder) -> Path:
    return tiny_folder("llama", tie_word_embeddings=True)


def text_of(rows: torch.Tensor) -> bytes:
    """The bytes that the tokens of the byte tokenizer stand for."""
    tokenizer = tiny.byte_tokenizer()
    text = tokenizer.decode(rows.flatten().tolist(), clean_up_tokenization_spaces=False)
    return str(text).encode()


def measured(network: ElasticNetwork, rows: torch.Tensor, tokens_per_batch: int) -> torch.Tensor:
    with torch.inference_mode():
        parts = [
            network.log_likelihoods(network.shape.dense(), batch)
            for batch in perplexity.batches(rows, tokens_per_batch)
        ]
    return torch.cat(parts)


def test_windows_are_the_joined_text_without_overlap_or_tail() -> None:
    whole = "\n\n".join(document.text for document in DOCUMENTS).encode()
    rows = perplexity.windows(DOCUMENTS, tiny.byte_tokenizer(), 20, len(whole) // 20, WHERE)
    assert rows.shape == (len(whole) // 20, 20)
    assert len(whole) % 20  # there is a tail to drop
    assert text_of(rows) == whole[: rows.numel()]
    assert not (rows == 1).any()  # no BOS
    assert perplexity.windows(DOCUMENTS, tiny.byte_tokenizer(), 20, 2, WHERE).equal(rows[:2])


def test_a_text_of_just_enough_tokens_will_do_and_one_fewer_will_not() -> None:
    whole = "\n\n".join(document.text for document in DOCUMENTS).encode()
    rows = perplexity.windows(DOCUMENTS, tiny.byte_tokenizer(), len(whole), 1, WHERE)
    assert rows.shape == (1, len(whole))
    with pytest.raises(InputError) as caught:
        perplexity.windows(DOCUMENTS, tiny.byte_tokenizer(), len(whole) + 1, 1, WHERE)
    assert f"{WHERE} has {len(whole)} tokens; 1 windows of {len(whole) + 1} need" in str(caught.value)
    with pytest.raises(InputError, match=r"has 0 tokens; 3 windows of 4 need 12"):
        perplexity.windows([], tiny.byte_tokenizer(), 4, 3, WHERE)


def test_perplexity_is_the_exponential_of_transformers_loss(folder: Path) -> None:
    rows = perplexity.windows(DOCUMENTS, tiny.byte_tokenizer(), 24, 7, WHERE)
    model = tiny.reference(folder)
    with torch.inference_mode():
        losses = [float(model(row[None], labels=row[None]).loss) for row in rows]
    metrics, samples = perplexity.scores(measured(tiny.network_of(folder), rows, 100), 7)
    assert samples.keys() == {"log_ppl"}
    assert samples["log_ppl"] == pytest.approx(losses, rel=1e-5)
    assert metrics["log_ppl"] == pytest.approx(statistics.fmean(losses), rel=1e-5)
    assert metrics["ppl"] == pytest.approx(math.exp(statistics.fmean(losses)), rel=1e-5)
    assert metrics["log_ppl"] == pytest.approx(statistics.fmean(samples["log_ppl"]), rel=1e-12)
    assert len({round(loss, 3) for loss in losses}) == 7


def test_every_token_but_each_windows_first_is_predicted() -> None:
    rows = torch.arange(3 * 5).view(3, 5) + 100
    batches = perplexity.batches(rows, 10)
    assert [batch.tokens.shape[0] for batch in batches] == [2, 1]
    assert [t for batch in batches for t in batch.targets.tolist()] == [
        *(101, 102, 103, 104),
        *(106, 107, 108, 109),
        *(111, 112, 113, 114),
    ]
    for batch in batches:
        assert batch.tokens.flatten()[batch.at].tolist() == (batch.targets - 1).tolist()
        assert batch.positions.tolist() == [[0, 1, 2, 3, 4]] * batch.tokens.shape[0]
        assert batch.mask is None


@pytest.mark.parametrize("tokens_per_batch", [1, 24, 48, 71, 72, 10_000])
def test_grouping_does_not_change_values(folder: Path, tokens_per_batch: int) -> None:
    network = tiny.network_of(folder)
    rows = perplexity.windows(DOCUMENTS, tiny.byte_tokenizer(), 24, 7, WHERE)
    sizes = [batch.tokens.numel() for batch in perplexity.batches(rows, tokens_per_batch)]
    assert sum(sizes) == rows.numel()
    assert max(sizes) <= max(24, tokens_per_batch)
    one_by_one = torch.cat([measured(network, row[None], 24) for row in rows])
    torch.testing.assert_close(measured(network, rows, tokens_per_batch), one_by_one, rtol=1e-6, atol=1e-5)
    found, _ = perplexity.scores(measured(network, rows, tokens_per_batch), 7)
    assert found["log_ppl"] == pytest.approx(perplexity.scores(one_by_one, 7)[0]["log_ppl"], rel=1e-6)


def test_scores_by_hand() -> None:
    likelihoods = torch.tensor([0.5, 0.25, 0.125, 0.5, 0.5, 0.5]).log()
    metrics, samples = perplexity.scores(likelihoods, 2)
    assert samples["log_ppl"] == pytest.approx([2 * math.log(2), math.log(2)])
    assert metrics == pytest.approx({"ppl": 2**1.5, "log_ppl": 1.5 * math.log(2)})
