"""Which known GPU a driver's name is of."""

from __future__ import annotations

import pytest

from stages.plan import machines


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 5090", "A100 80GB"),
        ("NVIDIA RTX A6000", "A100 80GB"),
    ],
)
def test_a_gpu_is_known_by_its_whole_name(name: str, known: str) -> None:
    assert machines.like(name).name == known
