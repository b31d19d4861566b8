"""A part of a stage's work, in numbers that any machine's rates turn into seconds."""

from __future__ import annotations

from dataclasses import dataclass

OWN_S = 9e-9
"""Seconds a parameter to cut weights of an architecture's own, in float32, and to bring them to the device:
8 of LLaMA-2-7B's shape took 374 s beside one H100, of which the repair itself was a twentieth."""
GRADIENT = 3
"""A forward and a backward pass cost three forward passes."""


@dataclass(frozen=True)
class Step:
    """A part of a stage.

    tokens are those that evaluations read; flops are in the model's dtype, flops32 and flops64 in these;
    layers counts calls of a decoder layer, and cpu_s seconds that no accelerator shortens.
    """

    stage: str
    what: str
    evaluations: int = 0
    tokens: int = 0
    flops: float = 0.0
    flops32: float = 0.0
    flops64: float = 0.0
    layers: int = 0
    cpu_s: float = 0.0
