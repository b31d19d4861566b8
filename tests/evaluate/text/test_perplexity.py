"""Perplexity against transformers' loss with labels, on windows cut by hand."""

from __future__ import annotations

import math
import random
import statistics
import textwrap
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from stages.config.params import Measurement, TextProtocol
from stages.evaluate.network.decoder import Decoder
from stages.evaluate.text import perplexity
from stages.evaluate.text.corpora import Document
from stages.files import InputError
from tests import tiny
from tests.conftest import TinyFolder

DOCUMENTS = [
    Document("a", "It was a bright cold day in April, and the clocks were striking thirteen."),
    Document("b", "Größe matters: naïve façades cost € 5."),
    Document("c", "All happy families are alike; each unhappy family is unhappy in its own way."),
]
WHERE = "corpora.texts.mine, part selection,"


def rows_of(length: int, count: int, documents: list[Document] = DOCUMENTS) -> torch.Tensor:
    protocol = TextProtocol("\n\n", length, length, "none")
    return perplexity.windows(documents, tiny.byte_tokenizer(), protocol, count, WHERE).tokens


@pytest.fixture(scope="module")
def folder(tiny_folder: TinyFolder) -> Path:
    return tiny_folder("llama", tie_word_embeddings=True)


def text_of(rows: torch.Tensor) -> bytes:
    """The bytes that the tokens of the byte tokenizer stand for."""
    tokenizer = tiny.byte_tokenizer()
    text = tokenizer.decode(rows.flatten().tolist(), clean_up_tokenization_spaces=False)
    return str(text).encode()


def measured(network: Decoder, rows: torch.Tensor, tokens_per_batch: int) -> torch.Tensor:
    with torch.inference_mode():
        parts = [
            network.log_likelihoods(network.shape.dense(), batch)
            for batch in perplexity.batches(rows, tokens_per_batch)
        ]
    return torch.cat(parts)


def test_windows_are_the_joined_text_without_overlap_or_tail() -> None:
    whole = "\n\n".join(document.text for document in DOCUMENTS).encode()
    rows = rows_of(20, len(whole) // 20)
    assert rows.shape == (len(whole) // 20, 20)
    assert len(whole) % 20  # there is a tail to drop
    assert text_of(rows) == whole[: rows.numel()]
    assert not (rows == 1).any()  # no BOS
    assert rows_of(20, 2).equal(rows[:2])


def test_a_text_of_just_enough_tokens_will_do_and_one_fewer_will_not() -> None:
    whole = "\n\n".join(document.text for document in DOCUMENTS).encode()
    rows = rows_of(len(whole), 1)
    assert rows.shape == (1, len(whole))
    with pytest.raises(InputError) as caught:
        rows_of(len(whole) + 1, 1)
    assert f"{WHERE} has {len(whole)} tokens; 1 windows of {len(whole) + 1} need" in str(caught.value)
    with pytest.raises(InputError, match=r"has 0 tokens; 3 windows of 4 need 12"):
        rows_of(4, 3, [])


def test_perplexity_is_the_exponential_of_transformers_loss(folder: Path) -> None:
    rows = rows_of(24, 7)
    model = tiny.reference(folder)
    with torch.inference_mode():
        losses = [float(model(row[None], labels=row[None]).loss) for row in rows]
    metrics, samples = perplexity.scores(measured(tiny.network_of(folder), rows, 100), 7, 999)
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
    rows = rows_of(24, 7)
    sizes = [batch.tokens.numel() for batch in perplexity.batches(rows, tokens_per_batch)]
    assert sum(sizes) == rows.numel()
    assert max(sizes) <= max(24, tokens_per_batch)
    one_by_one = torch.cat([measured(network, row[None], 24) for row in rows])
    torch.testing.assert_close(measured(network, rows, tokens_per_batch), one_by_one, rtol=1e-6, atol=1e-5)
    found, _ = perplexity.scores(measured(network, rows, tokens_per_batch), 7, 999)
    assert found["log_ppl"] == pytest.approx(perplexity.scores(one_by_one, 7, 999)[0]["log_ppl"], rel=1e-6)


def test_scores_by_hand() -> None:
    likelihoods = torch.tensor([0.5, 0.25, 0.125, 0.5, 0.5, 0.5]).log()
    metrics, samples = perplexity.scores(likelihoods, 2, 12)
    assert samples["log_ppl"] == pytest.approx([2 * math.log(2), math.log(2)])
    # Nine bits in all, of twelve bytes.
    assert metrics == pytest.approx({"ppl": 2**1.5, "log_ppl": 1.5 * math.log(2), "bpb": 9 / 12})


# --- protocols, against loops of their own ----------------------------------------------------------


def measurement(**changes: Any) -> Measurement:
    absent = dict.fromkeys(
        ("sequence_length", "stride", "join", "bos", "windows", "questions", "question_tokens")
    )
    return Measurement(**{"protocol": "standard", "question_formats": ["likelihood"], **absent, **changes})


@pytest.fixture(scope="module")
def merging() -> Any:
    """A tokenizer with merges, so that tokens are of one to many bytes, of parts of characters too."""
    words = " ".join(d.text for d in DOCUMENTS) + " €€€ naïve 😀😀 naïve naïve the the  the"
    trained = tiny.byte_tokenizer().train_new_from_iterator([words] * 4, vocab_size=300)
    assert max(len(token) for token in trained.get_vocab()) > 3
    return trained


def rows_of_prose(count: int) -> list[Document]:
    """Rows as the hub has WikiText-2: some empty, some with their line's end."""
    rng = random.Random(7)
    rows = [
        rng.choice(["", " = A title = \n", " It was a bright cold day in April € , and so on .\n"])
        for _ in range(count)
    ]
    return [Document(f"row-{index}", row) for index, row in enumerate(rows)]


def textbook(model: Any, ids: torch.Tensor, sequence_length: int) -> float:
    """GPTQ's, LLM-Pruner's and EvoPress's loop: chunks, shifted cross entropy, mean, exponential."""
    losses = []
    for index in range(ids.numel() // sequence_length):
        chunk = ids[None, index * sequence_length : (index + 1) * sequence_length]
        with torch.inference_mode():
            logits = model(chunk).logits[0, :-1].double()
        losses.append(torch.nn.functional.cross_entropy(logits, chunk[0, 1:], reduction="none"))
    return math.exp(float(torch.cat(losses).mean()))


@pytest.mark.parametrize(
    ("name", "special_tokens", "sequence_length"),
    [("standard", True, 2048), ("llm-pruner", True, 128), ("evopress", False, 8192)],
)
def test_presets_are_what_those_they_are_named_after_do(
    tiny_folder: TinyFolder, name: str, special_tokens: bool, sequence_length: int
) -> None:
    folder = tiny_folder("llama", max_position_embeddings=8192)
    tokenizer, documents = tiny.bos_tokenizer(), rows_of_prose(560)
    ids = tokenizer(
        "\n\n".join(d.text for d in documents), return_tensors="pt", add_special_tokens=special_tokens
    )["input_ids"][0]
    assert (int(ids[0]) == 1) == special_tokens
    rows = perplexity.windows(documents, tokenizer, measurement(protocol=name).text, None, WHERE)
    assert rows.tokens.shape == (ids.numel() // sequence_length, sequence_length)
    assert ids.numel() % sequence_length
    network = tiny.network_of(folder)
    found, _ = perplexity.scores(measured(network, rows.tokens, 8192), len(rows.tokens), rows.size_bytes)
    assert found["ppl"] == pytest.approx(textbook(tiny.reference(folder), ids, sequence_length), rel=1e-5)


def strided(model: Any, ids: list[int], length: int, stride: int, first: list[int]) -> list[float]:
    """Log-likelihoods of the last `stride` tokens of each window, a token at a time."""
    found, start, own = [], 0, length - len(first)
    while start + own <= len(ids):
        window = first + ids[start : start + own]
        for place in range(length - min(stride, length - 1), length):
            logits = tiny.reference_logits(model, torch.tensor([window[:place]]))[0, -1].double()
            found.append(float(logits.log_softmax(-1)[window[place]]))
        start += stride
    return found


@pytest.mark.parametrize("bos", ["none", "tokenizer", "window"])
@pytest.mark.parametrize("stride", [None, 7])
def test_stride_and_bos(folder: Path, stride: int | None, bos: Any) -> None:
    tokenizer = tiny.bos_tokenizer()
    protocol = measurement(sequence_length=24, stride=stride, bos=bos, join=" | ").text
    rows = perplexity.windows(DOCUMENTS, tokenizer, protocol, None, WHERE)
    text = " | ".join(d.text for d in DOCUMENTS)
    ids = tokenizer(text, add_special_tokens=bos == "tokenizer")["input_ids"]
    every = stride or (23 if bos == "window" else 24)
    expected = strided(tiny.reference(folder), ids, 24, every, [1] if bos == "window" else [])
    batches = perplexity.batches(rows.tokens, 100, rows.predicted)
    network = tiny.network_of(folder)
    with torch.inference_mode():
        found = torch.cat([network.log_likelihoods(network.shape.dense(), batch) for batch in batches])
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-4)
    assert len(rows.tokens) * rows.predicted == len(expected)
    # A token of this tokenizer is a byte, but for where a window's edge parts a character.
    assert abs(rows.size_bytes - len(expected)) <= 2 * len(rows.tokens)
    few = perplexity.windows(DOCUMENTS, tokenizer, protocol, 3, WHERE)
    assert few.tokens.equal(rows.tokens[:3])


def test_bytes_are_those_of_the_text_that_predicted_tokens_cover(merging: Any) -> None:
    text = "\n\n".join(d.text for d in DOCUMENTS)
    ids = merging(text)["input_ids"]
    for length in (2, 5, 16, len(ids)):
        protocol = TextProtocol("\n\n", length, length, "none")
        rows = perplexity.windows(DOCUMENTS, merging, protocol, None, WHERE)
        expected = sum(
            len("".join(merging.convert_ids_to_tokens(ids[start + 1 : start + length])))
            for start in range(0, len(ids) - length + 1, length)
        )  # a character of a token of bytes stands for one byte
        assert abs(rows.size_bytes - expected) <= 3 * len(rows.tokens)
        if length == len(ids):
            first = merging.decode(ids[:1])
            assert rows.size_bytes == expected == len(text.encode()) - len(first.encode())


def test_bits_per_byte_compare_tokenizers_and_perplexities_do_not(merging: Any) -> None:
    """A model that gives each of V tokens 1/V needs as many bits for a text, however it is cut."""
    found = []
    for tokenizer in (tiny.byte_tokenizer(), merging):
        rows = perplexity.windows(DOCUMENTS, tokenizer, measurement(sequence_length=10).text, None, WHERE)
        predicted = len(rows.tokens) * rows.predicted
        eight_bits_a_byte = torch.full((predicted,), -8 * math.log(2) * rows.size_bytes / predicted)
        found.append(perplexity.scores(eight_bits_a_byte, len(rows.tokens), rows.size_bytes)[0])
    assert [values["bpb"] for values in found] == pytest.approx([8, 8])
    assert found[0]["ppl"] < 0.8 * found[1]["ppl"]


def test_the_head_of_a_long_text_is_cut_as_the_whole_would_be(merging: Any) -> None:
    documents = [Document(str(i), d.text) for i in range(200) for d in DOCUMENTS]
    protocol = measurement(sequence_length=12).text
    whole = perplexity.windows(documents, merging, protocol, None, WHERE).tokens
    for count in (1, 2, 3, 5, 8, 13, 100):
        assert perplexity.windows(documents, merging, protocol, count, WHERE).tokens.equal(whole[:count])


WORDS = [
    "the",
    " the",
    "   ",
    "\n\n",
    "aaaa",
    "€€",
    "naïve",
    "😀",
    "12345",
    ", ",
    "e\u0301",
    "<s>",
    "aaaaaaaaaaaaaaaa",
]


def trained(kind: str) -> Any:
    """A tokenizer of each kind, with or without words: some take all of a text for one word."""
    bpe, word = tokenizers.models.BPE(unk_token="<unk>"), pre_tokenizers.Whitespace()
    made = tokenizers.Tokenizer(tokenizers.models.Unigram() if kind == "unigram" else bpe)
    if kind == "one word":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif kind == "unigram":
        made.normalizer, made.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    else:
        made.normalizer, made.pre_tokenizer = normalizers.NFC(), word
    trainer: Any = trainers.BpeTrainer(vocab_size=150, special_tokens=["<unk>", "<s>"])
    if kind == "unigram":
        trainer = trainers.UnigramTrainer(vocab_size=60, unk_token="<unk>", special_tokens=["<unk>", "<s>"])
    rng = random.Random(1)
    made.train_from_iterator(["".join(rng.choices(WORDS, k=30)) for _ in range(60)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>")


@pytest.fixture(scope="module")
def tokenizers_of_all_kinds(merging: Any) -> list[Any]:
    return [merging, tiny.byte_tokenizer(), *(trained(kind) for kind in ("one word", "unigram", "words"))]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=12),
    st.integers(1, 400),
    st.integers(1, 40),
    st.randoms(use_true_random=False),
)
def test_a_cut_changes_no_token_before_it(
    tokenizers_of_all_kinds: list[Any], words: list[str], count: int, needed: int, rng: random.Random
) -> None:
    """Be the text one line without an end or many, in words or not: but for a unigram model's words.

    Of the divisions of `aaaa…` into pieces of three and one, all of which are as likely, the length decides.
    """
    unbroken = ["".join(rng.choices(words, k=count)) for _ in range(4)]
    for tokenizer in tokenizers_of_all_kinds:
        unigram = isinstance(tokenizer.backend_tokenizer.model, tokenizers.models.Unigram)
        pieces = [" ".join(textwrap.wrap(piece, 40)) if unigram else piece for piece in unbroken]
        documents = [Document(str(i), piece) for i, piece in enumerate(pieces)]
        head, edges = perplexity._tokenised(documents, tokenizer, "\n\n", needed)
        whole, all_edges = perplexity._tokenised(documents, tokenizer, "\n\n", None)
        assert whole == tokenizer("\n\n".join(pieces), add_special_tokens=False)["input_ids"]
        assert head[:needed] == whole[:needed]
        assert len(head) >= min(needed, len(whole))
        if len(whole) > needed:
            assert edges[: needed + 1].tolist() == all_edges[: needed + 1].tolist()


def test_an_endless_line_is_tokenised_as_far_as_its_windows_go() -> None:
    line = "words that follow words without an end and " * 25_000
    longest = 0

    class Watched:
        bos_token_id = None

        def __call__(self, text: str, **options: Any) -> Any:
            nonlocal longest
            longest = max(longest, len(text))
            return tokenizer(text, **options)

    tokenizer = tiny.byte_tokenizer()
    for documents in ([Document("a", line)], [Document("a", "Short."), Document("b", line)]):
        for preset in ("standard", "llm-pruner", "evopress"):
            protocol = measurement(protocol=preset, sequence_length=32, windows=2).text
            rows = perplexity.windows(documents, Watched(), protocol, 2, WHERE)
            assert text_of(rows.tokens) == protocol.join.join(d.text for d in documents).encode()[:64]
    assert 64 < longest < 2000


def test_a_bos_that_is_not_there_cannot_be_asked_for() -> None:
    tokenizer = tiny.byte_tokenizer()
    tokenizer.bos_token = None
    with pytest.raises(InputError, match=r"part selection, is measured with bos: window, .* has no BOS; use"):
        perplexity.windows(DOCUMENTS, tokenizer, measurement(bos="window").text, 1, WHERE)


def test_windows_beyond_the_models_context_are_refused() -> None:
    perplexity.check_context(measurement().text, 2048)
    with pytest.raises(InputError, match="sequence_length is 2048, and the model's context has 2047 tokens"):
        perplexity.check_context(measurement().text, 2047)
