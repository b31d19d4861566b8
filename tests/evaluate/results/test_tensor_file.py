"""Safetensors files with a checksum."""

from __future__ import annotations

import numpy as np
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
