"""Tensors in files of the cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stages.evaluate.calibrate import cache
from stages.evaluate.results import tensor_file


def test_a_written_file_is_read_as_it_was_and_with_its_own_checksum(tmp_path: Path) -> None:
    """It is read by both ways, though it never lay in memory as a whole."""
    tensors = {"zeros": torch.zeros(64, dtype=torch.uint8), "b": torch.arange(6.0).reshape(2, 3)}
    path = tmp_path / "t.safetensors"
    cache.write(path, tensors)
    found = cache.read(path)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert tensor_file.metadata_of(path.read_bytes()) == {}
    found["b"].add_(1)  # what was read is the reader's own
    assert torch.equal(cache.read(path)["b"], tensors["b"])


def test_an_altered_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    cache.write(path, {"a": torch.arange(6.0)})
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(ValueError, match="altered"):
        cache.read(path)
