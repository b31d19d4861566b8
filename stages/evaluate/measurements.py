"""What all stages measure and ask: known before any of it is begun, so that what fails is told at once."""

from __future__ import annotations

from stages.config.params import Measurement, Params, Part


def prompts_of(params: Params) -> list[str]:
    """All that models are asked."""
    return [] if params.export.answers is None else list(params.export.answers.prompts)


def measured_on(params: Params) -> list[tuple[str, Part, Measurement, bool]]:
    """All that stages measure: the section of params that asks, part, how, and if on texts alone."""
    final = params.export.measurement
    found: list[tuple[str, Part, Measurement, bool]] = [
        ("evaluate.measurement", "selection", params.evaluate.measurement, False),
        ("search.measurement", "selection", params.search.measurement, False),
        ("export.measurement", "report", final, False),
    ]
    for key, asked in (("alternatives", params.export.alternatives), ("answers", params.export.answers)):
        if asked is not None:
            fewer = final.model_copy(update={"windows": asked.windows})
            found.append((f"export.{key}", "report", fewer, True))
    return found
