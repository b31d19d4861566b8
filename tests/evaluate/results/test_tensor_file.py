"""Safetensors files with a checksum."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from stages.evaluate.results import tensor_file


def test_the_same_content_has_the_same_bytes() -> None:
    """safetensors writes metadata in an order of its own each time; numbers and metadata are as they were."""
    tensors = {"b": np.arange(7.0), "a": np.ones((2, 3), dtype=np.float32)}
    metadata = {f"key{i}": str(i) for i in range(12)}
    made = {tensor_file.sealed(save(tensors, metadata)) for _ in range(20)}
    assert len(made) == 1
    (raw,) = made
    assert tensor_file.metadata_of(raw) == metadata
    found = load(raw)
    assert {name: found[name].tolist() for name in tensors} == {n: t.tolist() for n, t in tensors.items()}


def test_a_written_file_is_read_as_it_was_and_with_its_own_checksum(tmp_path: Path) -> None:
    """It is read by both ways, though it never lay in memory as a whole."""
    tensors = {"zeros": torch.zeros(64, dtype=torch.uint8), "b": torch.arange(6.0).reshape(2, 3)}
    path = tmp_path / "t.safetensors"
    tensor_file.write(path, tensors)
    found = tensor_file.read(path)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert tensor_file.metadata_of(path.read_bytes()) == {}
    found["b"].add_(1)  # what was read is the reader's own
    assert torch.equal(tensor_file.read(path)["b"], tensors["b"])


def test_an_altered_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    tensor_file.write(path, {"a": torch.arange(6.0)})
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(ValueError, match="altered"):
        tensor_file.read(path)
