"""What training takes of a GPU's memory, from the numbers of parameters alone."""

from __future__ import annotations

from stages.architecture import ModelShape
from stages.files import InputError

ADAPTERS = ("lora", "qlora")
"""The methods that train adapters, and leave the weights beside them as they are."""
BYTES = {"distill": 16.0, "full": 16.0, "lora": 2.3, "qlora": 0.9}
"""Bytes a parameter in training, methods that take less behind those that take more.

Where all are trained, weights and gradients in float32, and AdamW's two moments; with adapters, which are a
hundredth of the weights, those in 16 bits, or in 4 and their scales.
"""


def training_bytes(method: str, kept: int) -> float:
    """Bytes of a student with so many parameters in training, without its activations."""
    return kept * BYTES[method]


def activation_bytes(shape: ModelShape) -> int:
    """Bytes a token that a layer's operations keep for their gradients, in 16 and 32 bits, of all layers.

    Counted in transformers' modules under autocast: the residual stream and both norms in float32, the inputs
    and outputs of the projections in 16 bits. Compiled modules keep less.
    """
    return shape.layers * (54 * shape.hidden + 8 * shape.channels)


def smaller(method: str, kept: int, free: float) -> str | None:
    """The first method of adapters that fits where `method` does not, and its gigabytes; None: none does."""
    needed = training_bytes(method, kept)
    for other in ADAPTERS:
        if training_bytes(other, kept) <= min(free, 0.99 * needed):
            return f"{other} ({training_bytes(other, kept) / 1e9:.1f} GB)"
    return None


def require_room(method: str, kept: int, free: float) -> None:
    """Check that a student fits beside what is on the GPU already.

    Raises:
        InputError: it does not.
    """
    needed = training_bytes(method, kept)
    if needed > free:
        less = smaller(method, kept, free)
        instead = "prune or train elsewhere" if less is None else f"set it to {less}"
        raise InputError(
            f"params.yaml: export.recovery.method {method} takes {needed / 1e9:.1f} GB beside the dense "
            f"model, and the GPU has {free / 1e9:.1f} GB free; {instead}, or take a GPU with more memory"
        )
