"""FLOPs of running a model of any widths. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence

from stages.architecture import Kind, LayerWidth, ModelShape


def token_flops(shape: ModelShape, widths: Sequence[LayerWidth], attended: float) -> float:
    """FLOPs a token in decoder layers of these widths: two a weight, and four a query-key pair and element.

    `attended` is how many keys a token meets.
    """
    weights = sum(shape.site_parameters(kind, width) for width in widths for kind in Kind)
    heads = sum(width.kv_groups * width.heads_per_group for width in widths)
    return 2 * weights + 4 * attended * heads * shape.head_dim


def head_flops(shape: ModelShape, tokens: int) -> float:
    """FLOPs of the head, of so many tokens whose logits are asked for."""
    return 2.0 * tokens * shape.vocabulary * shape.hidden


def prompt_flops(shape: ModelShape, widths: Sequence[LayerWidth], length: int) -> float:
    """FLOPs of a prompt: the layers with causal attention, and the head once."""
    return length * token_flops(shape, widths, length / 2) + head_flops(shape, 1)
