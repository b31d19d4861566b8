"""The real llama.cpp computes what the folder does. Needs ``pip install prunecast[llama-cpp]``."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.architecture import Architecture
from stages.export.benchmark.proof import KL_BAR
from stages.export.benchmark.runtimes import LlamaCpp, PyTorch
from stages.export.benchmark.speed import kl
from stages.export.gguf.writer import write_file
from tests import tiny
from tests.export.deployable import (
    EVERY_CASE,
    LAST_HOLLOW,
    PRE_TOKENIZERS,
    TEXT,
    UNIFORM,
    VOCABULARY,
    folder_of,
    pruned_model,
    sentencepiece_tokenizer,
    trained_tokenizer,
)

pytest.importorskip("llama_cpp")

TOKENS = tiny.random_tokens(1, 120, vocabulary=VOCABULARY)[0].tolist()
SILENT = Architecture.from_json([[0, 0, 64], [0, 0, 128], [0, 0, 0], [0, 0, 32]])
ENDS_GONE = Architecture.from_json([[0, 0, 0], [2, 3, 128], [2, 3, 128], [0, 0, 0]])
CASES: dict[str, tuple[str, Architecture, dict[str, Any]]] = {
    "llama": ("llama", EVERY_CASE, {}),
    "llama, last layer without MLP": ("llama", LAST_HOLLOW, {}),
    "llama, uniform": ("llama", UNIFORM, {}),
    "llama, layers gone": (
        "llama",
        Architecture.from_json([[0, 0, 0], [2, 3, 128], [2, 3, 128], [0, 0, 0]]),
        {},
    ),
    "qwen2, layers gone": (
        "qwen2",
        Architecture.from_json([[2, 2, 64], [0, 0, 0], [2, 2, 64], [2, 2, 64]]),
        {},
    ),
    "llama, no attention at all": ("llama", SILENT, {}),
    "llama, tied and biased": (
        "llama",
        EVERY_CASE,
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "llama, heads of 8": ("llama", LAST_HOLLOW, {"head_dim": 8}),
    "mistral": ("mistral", LAST_HOLLOW, {"sliding_window": 200}),
    "qwen2": ("qwen2", EVERY_CASE, {}),
    "phi3": ("phi3", EVERY_CASE, {}),
    "qwen3": ("qwen3", EVERY_CASE, {"tie_word_embeddings": True}),
    "qwen3, last layer without MLP": ("qwen3", LAST_HOLLOW, {"tie_word_embeddings": True}),
    "qwen3, uniform": ("qwen3", UNIFORM, {"tie_word_embeddings": True}),
    "qwen3, no attention at all": ("qwen3", SILENT, {"tie_word_embeddings": True}),
    "qwen3, yarn rope": (
        "qwen3",
        EVERY_CASE,
        {"tie_word_embeddings": True, "rope_parameters": tiny.YARN_ROPE},
    ),
    "qwen2, tied, uniform": ("qwen2", UNIFORM, {"tie_word_embeddings": True}),
    "llama3 rope": ("llama", EVERY_CASE, {"rope_parameters": tiny.LLAMA3_ROPE}),
    "yarn rope": ("llama", EVERY_CASE, {"rope_parameters": tiny.YARN_ROPE}),
    "linear rope": (
        "llama",
        EVERY_CASE,
        {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1000.0}},
    ),
}


def perplexity(logits: torch.Tensor) -> float:
    targets = torch.tensor(TOKENS[1:])
    return math.exp(float(torch.nn.functional.cross_entropy(logits[:-1].double(), targets)))


@pytest.mark.parametrize("case", CASES)
def test_f16_is_the_folder(tmp_path: Path, case: str) -> None:
    family, architecture, options = CASES[case]
    model = pruned_model(tmp_path, architecture, family, **options)
    write_file(tmp_path / "model.gguf", model, "F16")
    expected = PyTorch(folder_of(tmp_path, model), 1).logits(TOKENS)
    found = LlamaCpp(tmp_path / "model.gguf", 1, 128, every_logit=True).logits(TOKENS)
    assert kl(expected, found) <= KL_BAR
    assert kl(expected, expected.roll(1, 0)) > 0.5, "logits that hardly vary: a blind test"
    assert perplexity(found) == pytest.approx(perplexity(expected), rel=1e-3)


@pytest.mark.parametrize(("file_type", "bar"), [("Q8_0", 0.01), ("Q4_0", 0.5)])
def test_quantised_files_are_the_folder_roughly(tmp_path: Path, file_type: str, bar: float) -> None:
    """Random weights have no redundancy: they suffer far more than those of a trained model."""
    model = pruned_model(tmp_path, EVERY_CASE)
    write_file(tmp_path / "model.gguf", model, file_type)
    expected = PyTorch(folder_of(tmp_path, model), 1).logits(TOKENS)
    assert kl(expected, LlamaCpp(tmp_path / "model.gguf", 1, 128, every_logit=True).logits(TOKENS)) <= bar


@pytest.mark.parametrize("architecture", [EVERY_CASE, LAST_HOLLOW, SILENT], ids=["every", "last", "silent"])
def test_generation_follows_the_folder(tmp_path: Path, architecture: Architecture) -> None:
    """Each greedy token of llama.cpp, with its cache, is the folder's best or within rounding of it."""
    model = pruned_model(tmp_path, architecture)
    write_file(tmp_path / "model.gguf", model, "F16")
    runtime = LlamaCpp(tmp_path / "model.gguf", 1, 128)
    prompt = TOKENS[:20]
    generator = runtime.model.generate(prompt, temp=0.0)
    generated = [next(generator) for _ in range(24)]
    logits = PyTorch(folder_of(tmp_path, model), 1).logits([*prompt, *generated])
    for place, token in enumerate(generated, start=len(prompt) - 1):
        assert logits[place, token] >= logits[place].max() - 0.1
    assert len(set(generated)) > 3


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
@pytest.mark.parametrize("bos", [False, True], ids=["plain", "bos"])
def test_text_is_tokenised_alike(tmp_path: Path, name: str, bos: bool) -> None:
    from stages.export.gguf.tokenizer import derived

    pre, ignore_merges = PRE_TOKENIZERS[name]
    tokenizer = trained_tokenizer(pre, ignore_merges, bos)
    model = pruned_model(tmp_path, UNIFORM)
    fields = derived(tokenizer, VOCABULARY)
    write_file(tmp_path / "model.gguf", type(model)(**{**vars(model), "tokenizer": fields}), "F16")
    llama = LlamaCpp(tmp_path / "model.gguf", 1, 32).model
    for text in (TEXT, TEXT.upper(), "a" + TEXT[::-1], f"<user>{TEXT}<eos><tool>x"):
        expected = tokenizer(text)["input_ids"]
        assert llama.tokenize(text.encode(), add_bos=True, special=True) == expected
        assert llama.detokenize(expected[bos:], special=True).decode() == text
    assert len(expected) < len(TEXT.encode()), "nothing is merged: a blind test"


SENTENCES = {  # ids by sentencepiece 0.2.3 itself
    "The model's 1234 widths: naïve, 日本語 🦙": [
        429, 370, 676, 631, 626, 657, 656, 659, 662, 579, 631, 658, 302, 629, 198, 178, 653, 627, 646, 626,
        233, 154, 168, 233, 159, 175, 235, 173, 161, 626, 243, 162, 169, 156,
    ],
    " two  spaces\tand\n\nlines ": [
        259, 628, 613, 259, 631, 357, 638, 274, 12, 518, 13, 13, 635, 270, 274, 626,
    ],
    "    if x == 3.14:\n        return": [
        260, 626, 411, 626, 663, 626, 692, 692, 626, 659, 642, 657, 662, 658, 13, 277, 263, 628, 641, 630,
        634,
    ],
}  # fmt: skip


@pytest.mark.parametrize("prefix", ["normalizer", "always", "first", "never"])
def test_sentencepiece_is_tokenised_alike(tmp_path: Path, prefix: str) -> None:
    """But for what `departures` names: of that, both sides are shown to be as it says."""
    from stages.export.gguf.tokenizer import derived

    tokenizer = sentencepiece_tokenizer(prefix)
    model = pruned_model(tmp_path, UNIFORM, vocab_size=704)
    fields = derived(tokenizer, 704)
    write_file(tmp_path / "model.gguf", type(model)(**{**vars(model), "tokenizer": fields}), "F16")
    llama = LlamaCpp(tmp_path / "model.gguf", 1, 32).model

    def ids(text: str) -> list[int]:
        return list(llama.tokenize(text.encode(), add_bos=True, special=True))

    rng = random.Random(0)
    parts = [
        *TEXT.split(),
        *(" " * n for n in range(1, 7)),
        "\n",
        "\t",
        "🦙",
        "▁",
        "ababa",
        "aaaaa",
        "<0x0A>",
        "007",
    ]
    control = ["<s>", "</s>", "<unk>"] if prefix in ("normalizer", "never") else []
    for text in (
        TEXT,
        TEXT.upper(),
        "a" + TEXT[::-1],
        *("a" + "".join(rng.choices([*parts, *control], k=9)) for _ in range(300)),
    ):
        assert ids(text) == tokenizer(text)["input_ids"], text
    assert llama.detokenize(ids(TEXT)[1:]).decode().removeprefix(" ") == TEXT
    assert len(ids(TEXT)) < len(TEXT.encode()), "nothing is merged: a blind test"
    if prefix != "never":
        for text, expected in SENTENCES.items():
            assert ids(text) == [1, *expected]
    spaced, after = " hello", "a</s>b"
    assert (ids(spaced) == tokenizer(spaced)["input_ids"]) == (prefix in ("normalizer", "never"))
    assert (ids(after) == tokenizer(after)["input_ids"]) == (prefix != "first")


def test_the_chat_template_is_used(tmp_path: Path) -> None:
    write_file(tmp_path / "model.gguf", pruned_model(tmp_path, EVERY_CASE), "Q8_0")
    model = LlamaCpp(tmp_path / "model.gguf", 1, 64).model
    answer = model.create_chat_completion(
        [{"role": "user", "content": "llamas"}], max_tokens=8, temperature=0, logit_bias={2: -100.0}
    )
    prompt: Any = trained_tokenizer().apply_chat_template([{"role": "user", "content": "llamas"}])
    assert answer["usage"]["prompt_tokens"] == len(prompt["input_ids"])
    assert answer["usage"]["completion_tokens"] > 0
