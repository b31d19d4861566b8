"""What every section of params.yaml is made of: its base class, and the types of its numbers.

Upper ends are far beyond what anybody means, and within what the libraries take that are handed a number.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(gt=0, lt=1)]
Ratio = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
Natural = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Drawn = Annotated[int, Field(ge=0, le=100_000)]
"""How many architectures a design draws."""
Threads = Annotated[int, Field(ge=1, le=1024)]
Positive = Annotated[float, Field(gt=0, le=1e9)]
RatioInterval = Annotated[list[Ratio], Field(min_length=2, max_length=2)]


class Section(BaseModel):
    """A section of params.yaml: frozen, no unknown keys, no silent conversions, numbers that are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
