"""A GGUF file, read back by gguf-py and run by hand, is the pruned model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize

from stages.architecture import Architecture
from stages.export.gguf.fields import UnsupportedError
from stages.export.gguf.writer import PrunedModel, write_file
from tests import tiny
from tests.by_hand import run_by_hand
from tests.export.deployable import EVERY_CASE, LAST_HOLLOW, UNIFORM, VOCABULARY, pruned_model

TOKENS = [5, 77, 200, 13, 13, 301]


def header(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """The file's tensors in float64, shaped (rows, columns)."""
    return {
        t.name: torch.from_numpy(dequantize(t.data, t.tensor_type).copy()).double()
        for t in GGUFReader(path).tensors
    }


def run_file_by_hand(path: Path, tokens: list[int]) -> torch.Tensor:
    """Logits of a GGUF file as llama.cpp's deci graph computes them, by explicit loops in float64.

    Its quirks included: without MLP a layer's attention is lost, rotary pairs are neighbours. Of an openelm
    file as that graph does: queries, keys and values are one matrix, the first two normed, halves are pairs.
    """
    fields, weights = header(path), tensors(path)
    arch = fields["general.architecture"]
    openelm = arch == "openelm"
    layers, d = fields[f"{arch}.block_count"], fields[f"{arch}.attention.key_length"]
    eps, theta = fields[f"{arch}.attention.layer_norm_rms_epsilon"], fields[f"{arch}.rope.freq_base"]
    turns = torch.tensor([theta ** (-2 * i / d) for i in range(d // 2)], dtype=torch.float64)

    def each_layer(name: str) -> list[int]:
        value = fields[f"{arch}.{name}"]
        return value if isinstance(value, list) else [value] * layers

    heads, groups = each_layer("attention.head_count"), each_layer("attention.head_count_kv")

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * weights[f"{name}.weight"]

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", torch.zeros(1))

    def turned(x: torch.Tensor) -> torch.Tensor:  # (L, heads, d)
        x = x.unflatten(-1, (2, d // 2)).transpose(-2, -1) if openelm else x.unflatten(-1, (d // 2, 2))
        angles = torch.arange(len(x))[:, None, None] * turns
        turned = torch.view_as_complex(x.contiguous()) * torch.polar(torch.ones_like(angles), angles)
        pairs = torch.view_as_real(turned)
        return (pairs.transpose(-2, -1) if openelm else pairs).flatten(-2)

    def projected(y: torch.Tensor, at: str, h: int, g: int) -> list[torch.Tensor]:  # (L, heads, d) each
        if not openelm:
            return [linear(y, f"{at}.attn_{n}").view(len(y), -1, d) for n in "qkv"]
        q, k, v = linear(y, f"{at}.attn_qkv").view(len(y), -1, d).split([h, g, g], dim=1)
        return [norm(q, f"{at}.attn_q_norm"), norm(k, f"{at}.attn_k_norm"), v]

    x = weights["token_embd.weight"][tokens]
    for layer in range(layers):
        at, h, g = f"blk.{layer}", heads[layer], groups[layer]
        inner = x
        if h:
            y = norm(x, f"{at}.attn_norm")
            q, k, v = projected(y, at, h, g)
            q, k = turned(q), turned(k)
            mixed = torch.empty(len(x), h, d, dtype=torch.float64)
            for head in range(h):
                scores = q[:, head] @ k[:, head * g // h].T / d**0.5
                scores += torch.full_like(scores, -torch.inf).triu(1)
                mixed[:, head] = scores.softmax(-1) @ v[:, head * g // h]
            inner = x + linear(mixed.flatten(1), f"{at}.attn_output")
        if f"{at}.ffn_up.weight" not in weights:
            continue
        y = norm(inner, f"{at}.ffn_norm")
        gate = linear(y, f"{at}.ffn_gate")
        x = inner + linear(gate * torch.sigmoid(gate) * linear(y, f"{at}.ffn_up"), f"{at}.ffn_down")
    output = weights.get("output.weight", weights["token_embd.weight"])
    return norm(x, "output_norm") @ output.T


def in_half_precision(model: PrunedModel) -> PrunedModel:
    """The same model with weights that F16 holds exactly."""
    return replace(model, state={name: t.half().float() for name, t in model.state.items()})


@pytest.mark.parametrize("architecture", [EVERY_CASE, LAST_HOLLOW, UNIFORM], ids=["every", "last", "uniform"])
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
        ("mistral", {}),
        ("qwen2", {}),
        ("phi3", {}),
        ("qwen3", {"tie_word_embeddings": True}),
    ],
    ids=["llama", "llama-tied-biased", "mistral", "qwen2", "phi3", "qwen3"],
)
def test_the_file_computes_what_the_pruned_model_does(
    tmp_path: Path, family: str, options: dict[str, Any], architecture: Architecture
) -> None:
    model = in_half_precision(pruned_model(tmp_path, architecture, family, **options))
    model = replace(model, state={**model.state, **biases_in_float32(model)})
    path = tmp_path / "model.gguf"
    write_file(path, model, "F16")
    expected = run_by_hand(model.state, model.config, TOKENS)
    torch.testing.assert_close(run_file_by_hand(path, TOKENS), expected, rtol=1e-6, atol=1e-6)


def biases_in_float32(model: PrunedModel) -> dict[str, torch.Tensor]:
    """Norms and biases that float16 would change, since the file must not round them."""
    return {name: t + 2**-16 for name, t in model.state.items() if t.dim() == 1}


def test_widths_are_written_layer_by_layer(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_file(path, pruned_model(tmp_path, EVERY_CASE), "F16")
    fields = header(path)
    assert fields["general.architecture"] == "deci"
    assert fields["general.name"] == "tiny"
    assert fields["deci.block_count"] == 3  # one of four layers lost everything
    assert fields["deci.attention.head_count"] == [1, 4, 3]  # a head of zeros first
    assert fields["deci.attention.head_count_kv"] == [1, 2, 1]
    assert fields["deci.feed_forward_length"] == [64, 32, 96]  # 45 and 0 channels padded
    for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        assert fields[f"deci.{key}"] == 32
    assert fields["deci.vocab_size"] == len(fields["tokenizer.ggml.tokens"]) == VOCABULARY
    assert fields["deci.context_length"] == 512
    found = tensors(path)
    assert found["blk.1.attn_q.weight"].shape == (4 * 32, 96)
    assert not found["blk.0.attn_output.weight"].any()
    assert not found["blk.1.ffn_down.weight"].any()
    assert found["blk.0.ffn_up.weight"][:45].any(dim=1).all()
    assert not found["blk.0.ffn_up.weight"][45:].any()
    assert not found["blk.0.ffn_down.weight"][:, 45:].any()


def test_equal_widths_make_an_ordinary_llama_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_file(path, pruned_model(tmp_path, UNIFORM), "F16")
    fields = header(path)
    assert fields["general.architecture"] == "llama"
    assert (fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]) == (4, 2)
    assert fields["llama.feed_forward_length"] == 64


@pytest.mark.parametrize("width", [[2, 3, 128], [2, 2, 64]], ids=["dense", "narrower"])
def test_layers_that_are_gone_leave_an_ordinary_llama_file_of_fewer(tmp_path: Path, width: list[int]) -> None:
    architecture = Architecture.from_json([[0, 0, 0], width, [0, 0, 0], width])
    model, path = in_half_precision(pruned_model(tmp_path, architecture)), tmp_path / "model.gguf"
    write_file(path, model, "F16")
    fields = header(path)
    assert (fields["general.architecture"], fields["llama.block_count"]) == ("llama", 2)
    expected = run_by_hand(model.state, model.config, TOKENS)
    torch.testing.assert_close(run_file_by_hand(path, TOKENS), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    ("file_type", "steps"), [("F16", 2048.0), ("Q8_0", 2 * 127.0), ("Q4_0", 8.0)], ids=["F16", "Q8_0", "Q4_0"]
)
def test_weights_are_rounded_as_the_type_says(
    tmp_path: Path, file_type: str, steps: float, tied: bool
) -> None:
    """No weight is off by more than its block's largest over `steps`; norms are exact."""
    model = pruned_model(tmp_path, LAST_HOLLOW, tie_word_embeddings=tied)
    path, exact = tmp_path / "model.gguf", tmp_path / "exact.gguf"
    write_file(path, model, file_type)
    write_file(exact, in_half_precision(model), "F16")
    types = {t.name: t.tensor_type for t in GGUFReader(path).tensors}
    output = "token_embd.weight" if tied else "output.weight"
    if file_type == "Q4_0":
        assert types[output] == GGMLQuantizationType.Q8_0
    assert ("output.weight" in types) != tied
    for name, found in tensors(path).items():
        expected = tensors(exact)[name]
        if found.dim() == 1:
            assert types[name] == GGMLQuantizationType.F32
            continue
        kind = GGMLQuantizationType.Q8_0 if file_type == "Q4_0" and name == output else file_type
        assert types[name] == (kind if isinstance(kind, GGMLQuantizationType) else GGMLQuantizationType[kind])
        largest = expected.view(len(expected), -1, 32).abs().amax(-1, keepdim=True)
        error = (found - expected).view(len(expected), -1, 32).abs()
        assert (error <= largest * (1 / steps + 2**-10)).all(), name


def test_rows_that_are_no_whole_blocks_stay_f16(tmp_path: Path) -> None:
    model = pruned_model(tmp_path, UNIFORM, head_dim=8)
    path = tmp_path / "model.gguf"
    write_file(path, model, "Q8_0")
    types = {t.name: t.tensor_type.name for t in GGUFReader(path).tensors}
    assert types["blk.0.attn_q.weight"] == "Q8_0"  # rows of 96
    assert types["blk.0.attn_output.weight"] == "Q8_0"  # 4 heads of 8: rows of 32
    narrow = replace(
        pruned_model(tmp_path / "narrow", Architecture.from_json([[1, 3, 64]] * 4), head_dim=8), name="narrow"
    )
    write_file(path, narrow, "Q8_0")
    assert {t.name: t.tensor_type.name for t in GGUFReader(path).tensors}["blk.0.attn_output.weight"] == "F16"


def test_what_ropes_and_windows_become(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_file(path, pruned_model(tmp_path / "1", UNIFORM, "mistral", sliding_window=48), "F16")
    assert header(path)["llama.context_length"] == 48
    linear = {"rope_type": "linear", "factor": 2.5, "rope_theta": 500.0}
    write_file(path, pruned_model(tmp_path / "2", UNIFORM, rope_parameters=linear), "F16")
    assert header(path)["llama.rope.freq_base"] == 500
    assert header(path)["llama.rope.scaling.type"] == "linear"
    assert header(path)["llama.rope.scaling.factor"] == 2.5
    write_file(path, pruned_model(tmp_path / "3", UNIFORM, rope_parameters=tiny.YARN_ROPE), "F16")
    assert header(path)["llama.rope.scaling.type"] == "yarn"
    assert header(path)["llama.rope.scaling.original_context_length"] == 16
    llama3 = {**tiny.LLAMA3_ROPE, "original_max_position_embeddings": 64}
    write_file(path, pruned_model(tmp_path / "4", UNIFORM, rope_parameters=llama3), "F16")
    assert "llama.rope.scaling.type" not in header(path)
    factors = tensors(path)["rope_freqs.weight"]
    # Wavelengths below 64/4 keep their frequency, those above 64/1 are stretched by the factor 4.
    wavelengths = 2 * np.pi * 1000.0 ** (torch.arange(16) / 16)
    assert [int((wavelengths < 16).sum()), int((wavelengths > 64).sum())] == [3, 10]
    torch.testing.assert_close(factors[:3], torch.ones(3).double())
    torch.testing.assert_close(factors[6:], torch.full((10,), 4.0).double())
    assert ((factors[3:6] > 1) & (factors[3:6] < 4)).all()


def with_rope(model: PrunedModel, **changes: Any) -> PrunedModel:
    rotary = {**(model.recipe.rotary[0] or {}), **changes}
    return replace(model, recipe=replace(model.recipe, rotary=(rotary,) * model.shape.layers))


def with_recipe(path: Path, **changes: Any) -> PrunedModel:
    model = pruned_model(path, UNIFORM)
    return replace(model, recipe=replace(model.recipe, **changes))


REFUSED: list[tuple[str, Any, str]] = [
    (
        "q/k norms, untied",
        lambda path: pruned_model(path, UNIFORM, "qwen3"),
        "qwen3 normalises queries and keys and has a head of its own; llama.cpp's one architecture",
    ),
    (
        "q/k norms, biased",
        lambda path: pruned_model(path, UNIFORM, "qwen3", tie_word_embeddings=True, attention_bias=True),
        "qwen3 normalises queries and keys and has biases; llama.cpp's one architecture",
    ),
    (
        "nothing left",
        lambda path: pruned_model(path, Architecture.from_json([[0, 0, 0]] * 4)),
        "every layer is gone",
    ),
    (
        "scales",
        lambda path: with_recipe(path, residual_scale=0.5, attention_scale=0.25),
        r"llama has the scales residual_scale 0\.5, attention_scale 0\.25; .* has none",
    ),
    (
        "activation",
        lambda path: with_recipe(path, activation="gelu_pytorch_tanh"),
        "llama has the activation gelu_pytorch_tanh",
    ),
    ("norms behind", lambda path: with_recipe(path, norm_after=True), "llama has norms behind its sublayers"),
    ("no rotation", lambda path: with_recipe(path, rotary=(None,) * 4), "llama has layers that rotate other"),
    (
        "two rotations",
        lambda path: with_recipe(path, rotary=({"rope_type": "default", "rope_theta": 9.0}, None) * 2),
        "llama has layers that rotate other",
    ),
    (
        "yarn",
        lambda path: with_rope(
            pruned_model(path, UNIFORM, rope_parameters=tiny.YARN_ROPE), beta_fast=20, attention_factor=1.3
        ),
        r"the yarn rope sets \['attention_factor', 'beta_fast'\]",
    ),
]


@pytest.mark.parametrize(("make", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_what_llama_cpp_cannot_hold_is_refused(tmp_path: Path, make: Any, message: str) -> None:
    model = make(tmp_path)
    with pytest.raises(UnsupportedError, match=message):
        write_file(tmp_path / "gguf" / "model.gguf", model, "F16")
    assert not (tmp_path / "gguf").exists()


def test_usual_yarn_settings_are_not_refused(tmp_path: Path) -> None:
    model = with_rope(
        pruned_model(tmp_path, UNIFORM, rope_parameters=tiny.YARN_ROPE), beta_fast=32.0, beta_slow=None
    )
    write_file(tmp_path / "model.gguf", model, "F16")


def test_a_weight_beyond_float16_is_refused(tmp_path: Path) -> None:
    model = pruned_model(tmp_path, UNIFORM)
    name = "model.layers.2.mlp.down_proj.weight"
    large = replace(model, state={**model.state, name: model.state[name] * 1e6})
    with pytest.raises(UnsupportedError, match=r"blk\.2\.ffn_down\.weight holds"):
        write_file(tmp_path / "gguf" / "model.gguf", large, "F16")
    assert list((tmp_path / "gguf").iterdir()) == []


def test_a_failed_write_leaves_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, folder = pruned_model(tmp_path, UNIFORM), tmp_path / "gguf"
    write_file(folder / "model.gguf", model, "F16")
    before = (folder / "model.gguf").read_bytes()
    calls = iter(range(100))

    def fail(*_: Any) -> Any:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return np.zeros((1,), np.uint8)

    monkeypatch.setattr(GGUFWriter, "write_tensor_data", fail)
    with pytest.raises(KeyboardInterrupt):
        write_file(folder / "model.gguf", model, "Q8_0")
    assert (folder / "model.gguf").read_bytes() == before
    assert [p.name for p in folder.iterdir()] == ["model.gguf"]


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    model = pruned_model(tmp_path, EVERY_CASE)
    for name in ("a", "b"):
        write_file(tmp_path / name, model, "Q4_0")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
