"""Tracking nothing, for `--no-tracking`."""

from __future__ import annotations

from typing import Any


class Nothing:
    """The interface of a tracker, and nothing else."""

    run = ""

    def __enter__(self) -> Nothing:
        return self

    def __exit__(self, *_: object) -> None: ...

    def log_evaluation(self, *_: Any) -> None: ...

    def tag_roles(self, *_: Any) -> None: ...

    def log_round(self, *_: Any) -> None: ...

    def log_predictor(self, *_: Any) -> str:
        return ""

    def log_model(self, *_: Any) -> str:
        return ""

    def log_curve(self, *_: Any) -> None: ...

    def log_stage(self, *_: Any, **__: Any) -> None: ...
