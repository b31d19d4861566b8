"""The budget of params.yaml: how small the winner must be, and how fast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.config.fields import Count, Fraction, Positive, Section, Threads

Dtype = Literal["float32", "bfloat16", "float16"]
BYTES: Mapping[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number of each dtype that a model is exported in."""


class Latency(Section):
    """How milliseconds are measured, and on what device: of the exported folder in PyTorch.

    A prompt of `prompt` tokens at once, then `continuation` tokens one by one; the median of `rounds`.
    """

    device: Literal["cpu", "cuda"]
    threads: Threads | None
    prompt: Count
    continuation: Count
    rounds: Annotated[int, Field(ge=3, lt=2**31)]


class Budget(Section):
    """What the winner may take; keys that are null limit nothing.

    With `overall_ratio` alone, the winner removes that fraction and at most `tolerance` more. With
    limits in bytes or milliseconds it removes as much as they all demand, `overall_ratio` among them,
    until less than `tolerance` of the tightest is left unused.
    """

    overall_ratio: Fraction | None
    tolerance: Annotated[float, Field(gt=0, le=0.1)]
    size_bytes: Annotated[int, Field(ge=1, lt=2**63)] | None
    prefill_ms: Positive | None
    decode_ms: Positive | None
    dtype: Dtype
    latency: Latency

    @model_validator(mode="after")
    def _limits_something(self) -> Budget:
        if self.overall_ratio is None and not self.limited:
            raise ValueError(
                "overall_ratio, size_bytes, prefill_ms and decode_ms are all null; give at least one"
            )
        return self

    @property
    def limited(self) -> bool:
        """Whether there are limits other than the overall ratio."""
        return self.size_bytes is not None or self.timed

    @property
    def timed(self) -> bool:
        """Whether milliseconds are limited, so that a latency table is needed."""
        return self.prefill_ms is not None or self.decode_ms is not None
