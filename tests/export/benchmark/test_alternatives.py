"""Weights rounded as llama.cpp's files hold them: against package gguf, digit for digit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.architecture import Architecture
from stages.config.params import GGUFType
from stages.evaluate.network.weights import PrunedWeights
from stages.export.benchmark import alternatives
from stages.export.gguf.writer import write_file
from stages.families import FAMILIES
from tests.export.deployable import UNIFORM, pruned_model

SPREADS = st.sampled_from(["normal", "large", "zeros", "ties", "one"])


def values(spread: str, seed: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(4, 96)).astype(np.float32)
    match spread:
        case "large":
            found *= 1e4
        case "zeros":
            found[:, 32:64] = 0
        case "ties":
            found = (np.round(found * 2) / 2).astype(np.float32)
        case "one":
            found[:] = 0
            found[0, seed % 96] = -3.25
    return found


@settings(deadline=None, max_examples=60)
@given(SPREADS, st.integers(0, 10_000), st.sampled_from(["F16", "Q8_0", "Q4_0"]))
def test_rounding_is_that_of_the_package(spread: str, seed: int, kind: str) -> None:
    given_values, stored = values(spread, seed), GGMLQuantizationType[kind]
    expected = dequantize(quantize(given_values, stored), stored)
    found = alternatives.rounded(torch.from_numpy(given_values), kind)
    np.testing.assert_array_equal(found.numpy(), expected)


def test_rows_that_are_no_whole_blocks_are_padded_and_norms_stay() -> None:
    row = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(row, (0, 24))
    assert torch.equal(alternatives.rounded(row, "Q8_0"), alternatives.rounded(padded, "Q8_0")[:, :40])
    assert torch.equal(alternatives.rounded(row, "F32"), row)


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0"])
def test_sizes_and_types_of_odd_widths_are_those_of_the_file(tmp_path: Path, kind: GGUFType) -> None:
    """One head of 16 in a layer, whose output rows are half a block, and channels that the file pads."""
    odd = Architecture.from_json([[1, 1, 33], [2, 3, 128], [1, 3, 95], [2, 1, 64]])
    model = pruned_model(tmp_path, odd, tie_word_embeddings=False)
    write_file(tmp_path / "model.gguf", model, kind)
    tensors = GGUFReader(tmp_path / "model.gguf").tensors
    found = alternatives.size_bytes(model.state, kind, FAMILIES["llama"], model.shape)
    assert found == sum(int(t.n_bytes) for t in tensors)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0"])
def test_sizes_are_those_of_the_file(tmp_path: Path, kind: GGUFType, tied: bool) -> None:
    model = pruned_model(tmp_path, UNIFORM, tie_word_embeddings=tied)
    write_file(tmp_path / "model.gguf", model, kind)
    tensors = GGUFReader(tmp_path / "model.gguf").tensors
    found = alternatives.size_bytes(model.state, kind, FAMILIES["llama"], model.shape)
    assert found == sum(int(t.n_bytes) for t in tensors)


def test_rounded_weights_are_weights_of_their_own(tmp_path: Path) -> None:
    """Of another digest, so that a journal tells them from those they were made of."""
    model, family = pruned_model(tmp_path, UNIFORM, tie_word_embeddings=True), FAMILIES["llama"]
    weights = PrunedWeights(UNIFORM, ({"cut": "so"},), lambda dtype: dict(model.state))
    made = {k: alternatives.rounded_weights(weights, k, family, model.shape) for k in ("Q8_0", "Q4_0")}
    assert len({weights.digest, *(m.digest for m in made.values())}) == 3
    state = made["Q4_0"].make(torch.float32)
    output = family.embedding
    assert torch.equal(state[output], alternatives.rounded(model.state[output], "Q8_0"))
    other = next(n for n, t in state.items() if t.dim() > 1 and n != output)
    assert torch.equal(state[other], alternatives.rounded(model.state[other], "Q4_0"))
    assert torch.equal(state[family.final_norm], model.state[family.final_norm])
