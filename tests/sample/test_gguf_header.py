"""What a GGUF file says is understood or refused, and a damaged one is an error in words."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from stages.config.params import ModelSection
from stages.families import describe
from stages.files import InputError
from stages.sample import gguf_header
from stages.sample.gguf_header import check_tokens, configuration, read_header
from stages.sample.source import locate, read_model
from stages.sample.weight_check import check_source
from tests import ggufs


def read(path: Path) -> dict[str, Any]:
    """All that `sample` reads."""
    header = read_header(path)
    found = configuration(header)
    check_tokens(header)
    gguf_header.tensors(header)
    describe(found, str(path))
    return found


@pytest.mark.parametrize("family", ggufs.ARCHITECTURES)
def test_the_configuration_is_that_of_the_model(tmp_path: Path, family: str) -> None:
    model = ggufs.model_of(family)
    found, expected = read(ggufs.write(tmp_path / "tiny.gguf", model)), model.config.to_dict()
    assert found.pop("rms_norm_eps") == pytest.approx(expected["rms_norm_eps"])
    assert found.pop("unk_token_id") == 3
    assert found.pop("sliding_window_pattern", 6) == 6  # which transformers makes layer_types of
    assert found == {key: expected[key] for key in found}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rope.dimension_count": 4}, "rotates 0.5 of each head"),
        ({"rope.scaling.type": "longrope", "rope.scaling.factor": 4.0}, "the rope type 'longrope'"),
        ({"rope.scaling.type": "dynamic", "rope.scaling.factor": 4.0}, "the rope type 'dynamic'"),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.yarn_log_multiplier": 0.1,
            },
            "sets llama.rope.scaling.yarn_log_multiplier to 0.1",
        ),
        ({"rope.scaling.attn_factor": 1.2}, "sets llama.rope.scaling.attn_factor to 1.2"),
        ({"rope.dimension_sections": [2, 2]}, "sets llama.rope.dimension_sections"),
        ({"rope.freq_base": float("nan")}, "rope.freq_base nan; expected a number above 0"),
        ({"expert_count": 8, "expert_used_count": 2}, "sets llama.expert_count to 8"),
        ({"attention.causal": False, "attention.scale": 0.5}, "sets llama.attention.scale to 0.5"),
        ({"logit_scale": 2.0}, "sets llama.logit_scale to 2.0"),
        ({"attention.head_count": [6, 6, 5, 6]}, "sizes of their own .llama.attention.head_count."),
        ({"attention.value_length": 4}, "keys of 8 and values of 4"),
        ({"attention.layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon None; expected a number"),
        ({"block_count": None}, "lacks llama.block_count"),
        ({"context_length": 0}, "llama.context_length 0; expected a whole number from 1"),
        ({"embedding_length": "wide"}, "llama.embedding_length 'wide'; expected a whole number"),
        ({"vocab_size": 300}, "a vocab_size of 300 and an embedding of 261 rows"),
    ],
)
def test_what_cannot_be_rebuilt_is_refused(tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    path = ggufs.write(tmp_path / "tiny.gguf", ggufs.model_of(), settings)
    with pytest.raises(InputError, match=says):
        read(path)


@pytest.mark.parametrize(
    "settings",
    [
        {"expert_count": 0, "expert_used_count": 0},
        {"attention.causal": True, "rope.scaling.attn_factor": 1.0, "rope.scaling.finetuned": True},
        {"rope.scaling.type": "none", "rope.scaling.factor": 4.0},
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 1.0},
        {"attention.head_count_kv": [2, 2, 2, 2], "tensor_data_layout": "Meta AI original pth"},
    ],
)
def test_what_changes_nothing_is_passed_over(tmp_path: Path, settings: dict[str, Any]) -> None:
    model = ggufs.model_of()
    plain = read(ggufs.write(tmp_path / "plain.gguf", model))
    assert read(ggufs.write(tmp_path / "tiny.gguf", model, settings)) == plain


@pytest.mark.parametrize(
    ("name", "rows", "says"),
    [
        ("rope_freqs.weight", [1.0, 2.0, 1.0, 3.0], "not as Llama 3 does"),
        ("rope_factors_long.weight", [1.0, 2.0, 3.0, 4.0], "the rope type 'longrope'"),
    ],
)
def test_frequencies_that_cannot_be_rebuilt_are_refused(
    tmp_path: Path, name: str, rows: list[float], says: str
) -> None:
    model = ggufs.model_of()
    tensors = ggufs.tensors_of(model) | {name: np.array(rows, np.float32)}
    with pytest.raises(InputError, match=says):
        read(ggufs.write(tmp_path / "tiny.gguf", model, tensors=tensors))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"blk.2.ffn_up.weight": None},
            r"lacks 1 tensors .*\.2\.mlp\.up_proj\.weight; the file is",
        ),
        ({"output_norm.weight": np.ones(35, np.float32)}, r"model\.norm\.weight: 35; expected 36"),
        (
            {"blk.0.attn_sinks.weight": np.ones(6, np.float32)},
            r"does not announce, .* blk\.0\.attn_sinks",
        ),
        ({"blk.4.attn_norm.weight": np.ones(36, np.float32)}, r"does not announce, .* blk\.4\.attn_norm"),
    ],
)
def test_every_tensor_is_compared(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    model = ggufs.model_of()
    kept = {name: rows for name, rows in (ggufs.tensors_of(model) | change).items() if rows is not None}
    path = ggufs.write(tmp_path / "tiny.gguf", model, tensors=kept)
    source = ModelSection(source=str(path), revision=None, trust_remote_code=False)
    with pytest.raises(InputError, match=says):
        check_source(locate(source), source, read_model(source))


def test_an_architecture_that_is_not_read_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "gemma2")
    writer.add_block_count(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(
        InputError, match="of the architecture 'gemma2'; GGUF files of gemma3, llama, qwen2, qwen3 are"
    ):
        read(tmp_path / "tiny.gguf")


def test_a_type_that_cannot_be_dequantised_is_named(tmp_path: Path) -> None:
    model = ggufs.model_of()
    tensors = ggufs.tensors_of(model)
    tensors["blk.1.ffn_up.weight"] = tensors["blk.1.ffn_up.weight"].astype(np.int8)
    with pytest.raises(
        InputError, match=r"holds blk\.1\.ffn_up\.weight as I8, which the package gguf cannot"
    ):
        read(ggufs.write(tmp_path / "tiny.gguf", model, tensors=tensors))


def test_a_tokenizer_is_needed_and_fits_the_embedding(tmp_path: Path) -> None:
    model = ggufs.model_of()
    with pytest.raises(InputError, match="has no tokenizer"):
        read(ggufs.write(tmp_path / "none.gguf", model, tokenizer=False))
    tensors = ggufs.tensors_of(model)
    tensors["token_embd.weight"] = tensors["token_embd.weight"][:200]
    path = ggufs.write(tmp_path / "small.gguf", model, {"vocab_size": None}, tensors)
    with pytest.raises(InputError, match="a tokenizer of 261 tokens and an embedding of 200 rows"):
        read(path)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    first, second = ggufs.write_parts(tmp_path, ggufs.model_of(), first=5)
    second.unlink()
    with pytest.raises(
        InputError, match=r"one of 2 parts .*beside it: tiny-00002-of-00002\.gguf\. .*--merge"
    ):
        read(first)
    renamed = first.rename(tmp_path / "part.gguf")
    with pytest.raises(
        InputError, match=r"says that it is part 1 of 2; by its name it is part 1 of 1.*--merge"
    ):
        read(renamed)


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    model = ggufs.model_of()
    first, second = ggufs.write_parts(tmp_path, model, first=5)
    second.write_bytes(first.read_bytes())
    with pytest.raises(InputError, match="part 1 of 2; by its name it is part 2 of 2"):
        read(first)
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    for count, says in ((3, "holds .* which a part before holds too"), (8, "hold 36 of 39 tensors")):
        first, _ = ggufs.write_parts(one, model, first=5)
        _, second = ggufs.write_parts(other, model, first=count)
        second.replace(one / second.name)
        with pytest.raises(InputError, match=says):
            read(first)


def test_a_damaged_file_is_an_error_in_words(tmp_path: Path) -> None:
    """Cut short anywhere, or with bytes of its header changed: refused, or nothing depends on them."""
    whole = ggufs.write(tmp_path / "whole.gguf", ggufs.model_of()).read_bytes()
    draw = random.Random(0)
    path, refused = tmp_path / "damaged.gguf", 0
    cuts = [whole[:size] for size in (0, 3, 8, 24, 100, 1000, len(whole) // 2, len(whole) - 40)]
    cuts += [whole[: draw.randrange(len(whole) - 40)] for _ in range(12)]
    flips = []
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(draw.choice((1, 4))):
            damaged[draw.randrange(1500)] = draw.randrange(256)
        flips.append(bytes(damaged))
    for content in (*cuts, *flips, b"GGUF" + bytes(200), draw.randbytes(300)):
        path.write_bytes(content)
        try:
            read(path)
        except InputError:
            refused += 1
        else:
            assert len(content) == len(whole)
    assert refused >= len(cuts) + 20
