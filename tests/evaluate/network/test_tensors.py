"""Weights are read once, and values that no network can be run with are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.files import InputError
from tests import tiny

DOWN, NORM = "model.layers.1.mlp.down_proj.weight", "model.norm.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.write_model(tmp_path / "model", "llama", tie_word_embeddings=True)


def change(folder: Path, **tensors: Any) -> None:
    state = load_file(folder / "model.safetensors") | {n.replace("__", "."): t for n, t in tensors.items()}
    save_file({n: t.contiguous() for n, t in state.items()}, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({0: float("nan")}, "1 NaN, 0 infinite"),
        ({0: float("inf"), 7: -float("inf")}, "0 NaN, 2 infinite"),
        ({3: float("nan"), 5: float("inf")}, "1 NaN, 1 infinite"),
    ],
)
def test_values_that_are_not_finite_are_counted(
    folder: Path, stored: torch.dtype, values: dict[int, float], words: str
) -> None:
    tensor = load_file(folder / "model.safetensors")[DOWN].to(stored)
    for place, value in values.items():
        tensor.view(-1)[place] = value
    change(folder, **{DOWN: tensor})
    with pytest.raises(
        InputError, match=rf"{len(values)} of the 2304 values of {DOWN} in model\.saf.*{words}"
    ):
        tiny.load(folder)


def test_what_the_asked_type_cannot_hold_is_not_finite(folder: Path) -> None:
    change(folder, **{NORM: torch.full((tiny.HIDDEN,), 1e6)})
    tiny.load(folder)
    with pytest.raises(InputError, match=rf"36 of the 36 values of {NORM} .* finite as float16"):
        tiny.load(folder, torch.float16)


@pytest.mark.parametrize("largest", [3e38, 60000.0])
def test_a_sum_that_overflows_is_no_damage(folder: Path, largest: float) -> None:
    dtype = torch.float16 if largest < 1e5 else torch.float32
    change(folder, **{NORM: torch.full((tiny.HIDDEN,), largest, dtype=dtype)})
    assert tiny.load(folder, dtype).state[NORM].eq(largest).sum() in (0, tiny.HIDDEN)  # 60000 is rounded


def test_a_tied_head_that_is_the_embedding_is_dropped_and_another_is_refused(folder: Path) -> None:
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    change(folder, lm_head__weight=embedding.clone())
    assert "lm_head.weight" not in tiny.load(folder).state
    change(folder, lm_head__weight=embedding + 1e-3)
    with pytest.raises(InputError, match=r"ties its head .* holds another, lm_head\.weight: set"):
        tiny.load(folder)
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    assert torch.equal(tiny.load(folder).state["lm_head.weight"], embedding + 1e-3)


def test_wrapped_tensors_are_read_under_the_names_of_the_model(folder: Path) -> None:
    plain = tiny.load(folder).state
    state = load_file(folder / "model.safetensors")
    save_file({f"module._orig_mod.{n}": t for n, t in state.items()}, folder / "model.safetensors")
    found = tiny.load(folder).state
    assert found.keys() == plain.keys()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in found.items())


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"dtype": "float99"}),
        ("config.json", {"id2label": {"x": 1}}),
        ("config.json", {"initializer_range": "wide"}),
        ("config.json", {"use_cache": "yes"}),
        ("config.json", {"attention_dropout": [1]}),
        ("config.json", {"eos_token_id": {"a": 1}}),
        ("generation_config.json", {"max_new_tokens": "many"}),
        ("generation_config.json", {"max_new_tokens": -1}),
        ("generation_config.json", {"pad_token_id": -1}),
    ],
)
def test_what_transformers_refuses_is_said_in_words(folder: Path, file: str, changes: dict[str, Any]) -> None:
    content = json.loads((folder / file).read_text()) | changes
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"transformers refuses its {file}"):
        tiny.load(folder)


def test_token_ids_are_kept_of_a_generation_config_that_could_not_be_written_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Llama 2's sets a temperature without sampling, at which transformers' `save_pretrained` stops."""
    content = {"temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 3], "bos_token_id": 1}
    (folder / "generation_config.json").write_text(json.dumps(content))
    found = tiny.load(folder).generation_config
    assert found is not None
    assert (found.eos_token_id, found.bos_token_id, found.temperature) == ([2, 3], 1, None)
    found.save_pretrained(tmp_path / "again")
    assert "only token ids are kept: `temperature`: `do_sample` is not set" in capsys.readouterr().out
