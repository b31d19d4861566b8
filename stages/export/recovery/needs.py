"""What training takes of a GPU's memory, from the numbers of parameters alone."""

from __future__ import annotations

from stages.files import InputError

ALL_BYTES = 16
"""Bytes a parameter where all are trained: float32 weights and gradients, and AdamW's two moments."""
ADAPTER_BYTES = 2.3
"""Bytes a parameter where adapters are: weights in 16 bits, and a hundredth of them in training."""


def training_bytes(method: str, kept: int) -> float:
    """Bytes of a student with so many parameters in training, without its activations."""
    return kept * (ADAPTER_BYTES if method == "lora" else ALL_BYTES)


def require_room(method: str, kept: int, free: float) -> None:
    """Check that a student fits beside what is on the GPU already.

    Raises:
        InputError: it does not.
    """
    needed = training_bytes(method, kept)
    if needed > free:
        less = training_bytes("lora", kept)
        instead = f"set it to lora ({less / 1e9:.1f} GB)" if method != "lora" else "prune or train elsewhere"
        raise InputError(
            f"params.yaml: export.recovery.method {method} takes {needed / 1e9:.1f} GB beside the dense "
            f"model, and the GPU has {free / 1e9:.1f} GB free; {instead}, or take a GPU with more memory"
        )
