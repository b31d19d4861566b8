"""The sections of params.yaml that ask for training after pruning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.config.fields import Count, Positive, Section, Seed

Name = Annotated[str, Field(min_length=1)]


class RecoverySection(Section):
    """How the pruned model is trained before it is exported, and on which text."""

    method: Literal["none", "distill", "full", "lora", "qlora"]
    text: Name | Annotated[list[Name], Field(min_length=1)]
    tokens: Count
    passes: Count
    local: Annotated[float, Field(ge=0, le=1)]
    sequence_length: Annotated[int, Field(ge=2, lt=2**31)]
    tokens_per_step: Count
    learning_rate: Positive | None
    rank: Count
    checkpoints: Count
    baselines: bool
    seed: Seed

    @property
    def sources(self) -> list[str]:
        """Where the text comes from, in the order in which it is taken."""
        return [self.text] if isinstance(self.text, str) else list(self.text)

    @model_validator(mode="after")
    def _each_source_once(self) -> RecoverySection:
        if len(set(self.sources)) < len(self.sources):
            raise ValueError(f"text is {self.text}; expected each source once")
        return self

    @model_validator(mode="after")
    def _whole_steps(self) -> RecoverySection:
        if self.tokens_per_step < self.sequence_length:
            raise ValueError(
                f"tokens_per_step is {self.tokens_per_step}; expected at least one sequence of "
                f"sequence_length, {self.sequence_length}"
            )
        return self
