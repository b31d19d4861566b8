"""Small random models that llama.cpp can hold: a trained byte-level BPE, sizes that quantise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_utils_base import generate_merges

from stages.architecture import Architecture
from stages.evaluate.network.elastic import DenseNetwork
from stages.evaluate.network.layers import apart
from stages.export.gguf.tokenizer import derived
from stages.export.gguf.writer import PrunedModel
from stages.export.weights.huggingface import write_folder
from stages.families import FAMILIES
from tests import tiny

VOCABULARY, SPARE = 320, 4
SIZES: dict[str, Any] = {
    "hidden_size": 96,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 128,
    "vocab_size": VOCABULARY,
}
TEXT = """Forty-two llamas (42, or 1234567) didn't sleep: "we're tired", they'd say, I'll bet!
\tThey\u2019d  walked   far -- 3.14 km -- over hills\n\n\nand naïve façades, 日本語 and Ελληνικά;
émigrés' x_y = z[0] + 1e-5;
YOU'RE SHOUTING, it's   true.  \n """
CHAT = "{% for message in messages %}<user>{{ message['content'] }}!{% endfor %}"
EVERY_CASE = Architecture.from_json([[0, 0, 45], [2, 2, 0], [0, 0, 0], [1, 3, 96]])
"""A first layer without attention, attention beside a dropped MLP, a layer that lost both."""
LAST_HOLLOW = Architecture.from_json([[2, 3, 128], [0, 0, 33], [1, 1, 64], [2, 1, 0]])
UNIFORM = Architecture.from_json([[2, 2, 64]] * 4)


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


_BEFORE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_AFTER = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
NEMO = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?"
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Mistral Nemo's, which llama.cpp knows as "tekken" and rewrites with other meaning beyond ASCII."""
PRE_TOKENIZERS: dict[str, tuple[pre_tokenizers.PreTokenizer, bool]] = {
    "gpt-2": (pre_tokenizers.ByteLevel(add_prefix_space=False), False),
    "smollm": (
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
        False,
    ),
    "llama-bpe": (split(_BEFORE + r"\p{N}{1,3}" + _AFTER), True),
    "dbrx": (split(_BEFORE + r"\p{N}{1,3}" + _AFTER), False),
    "qwen2": (split(_BEFORE + r"\p{N}" + _AFTER), False),
}
"""llama.cpp's name -> the pre-tokenizer of that name in the models' own tokenizer.json, and ignore_merges."""


def trained_tokenizer(
    pre: pre_tokenizers.PreTokenizer | None = None, ignore_merges: bool = False, bos: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on TEXT, with control tokens first and one that is user-defined last."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - SPARE - 1,
        special_tokens=["<pad>", "<bos>", "<eos>", "<user>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    fast.add_tokens(["<tool>"])
    fast.chat_template = CHAT
    if bos:
        fast.backend_tokenizer.post_processor = TemplateProcessing(
            single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 1)]
        )
    return fast


def pruned_model(
    tmp_path: Path, architecture: Architecture, family: str = "llama", **options: Any
) -> PrunedModel:
    """A random model pruned by the elastic network, its units in a random order."""
    source = tmp_path / "dense"
    dense = tiny.random_model(family, 0, **SIZES | options)
    with torch.no_grad():
        dense.lm_head.weight.mul_(0.5)  # else rounding to float16 shows in a perplexity of thousands
    dense.save_pretrained(source)
    tokenizer = trained_tokenizer()
    tokenizer.save_pretrained(source)
    loaded = tiny.load(source)
    network = DenseNetwork(loaded, tiny.CPU).sorted(tiny.random_order(loaded.shape))
    state: Mapping[str, torch.Tensor] = network.sliced_state(architecture)
    for index, width in enumerate(architecture.widths):
        state = apart(state, loaded.family, loaded.shape, index, width)
    return PrunedModel(
        "tiny", state, loaded.recipe, loaded.config, architecture, loaded.shape,
        derived(tokenizer, VOCABULARY),
    )  # fmt: skip


def folder_of(tmp_path: Path, model: PrunedModel) -> Path:
    """The same pruned model as a Hugging Face folder."""
    folder = tmp_path / "model"
    parts = tuple(f".{part}.weight" for one in FAMILIES[model.shape.family].fused.values() for part in one)
    state = {name: tensor for name, tensor in model.state.items() if not name.endswith(parts or ("?",))}
    write_folder(folder, state, model.config, model.architecture, model.shape, None, None, torch.float32)
    return folder


SENTENCEPIECE = Path(__file__).with_name("sentencepiece.vocab")
"""What `sentencepiece` 0.2.3 trained, a piece and its score a line: BPE with byte fallback, digits split,
identity normalisation, as Llama 2's (`spm_train --model_type=bpe --vocab_size=700 --byte_fallback
--split_digits --allow_whitespace_only_pieces --normalization_rule_name=identity
--remove_extra_whitespaces=false --character_coverage=0.995`, on the README)."""


def sentencepiece_tokenizer(prefix: str = "normalizer", **changes: Any) -> PreTrainedTokenizerFast:
    """That vocabulary as transformers keeps it: merges made by transformers' own function.

    `prefix` says when a space is put before text: by a "normalizer", as in Llama 2's tokenizer.json, or by
    a pre-tokenizer "always", "first" or "never", as transformers 5 builds its LlamaTokenizer.
    """
    pieces = [line.split("\t")[0] for line in SENTENCEPIECE.read_text().splitlines()]
    vocabulary = {piece: row for row, piece in enumerate(pieces)}
    settings = {"vocab": vocabulary, "merges": generate_merges(vocabulary), "byte_fallback": True} | changes
    tokenizer = Tokenizer(models.BPE(fuse_unk=True, **settings))
    if prefix == "normalizer":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prefix, split=False)
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    fast.chat_template = CHAT
    return fast
