"""How far a run of the pipeline is: which stage of six, and the time left by the plan, corrected as it runs.

`prunecast repro` plans a run and hands the plan on to the stages in the environment; a stage that is run
alone knows of none. Standard library only.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping

STAGES = ("sample", "evaluate", "build-dataset", "train-predictor", "search", "export")
VARIABLE = "PRUNECAST_PLAN"
"""A variable of the environment: planned seconds by stage, and when the run began."""
TRUSTED_S = 60.0
"""Planned seconds that must have passed before the plan is corrected by what they took."""


def environment(planned: Mapping[str, float]) -> dict[str, str]:
    """What the stages are handed: the plan, by stage, of a run that begins now."""
    return {VARIABLE: json.dumps({"planned": dict(planned), "begun": time.time()})}


def told(stage: str) -> str:
    """A line for the start of a stage, or nothing for what is no stage, or was not planned."""
    if stage not in STAGES or VARIABLE not in os.environ:
        return ""
    plan = json.loads(os.environ[VARIABLE])
    place = STAGES.index(stage)
    passed, left = (
        sum(plan["planned"].get(name, 0.0) for name in part) for part in (STAGES[:place], STAGES[place:])
    )
    elapsed = time.time() - plan["begun"]
    if passed > TRUSTED_S and elapsed > TRUSTED_S:  # what DVC took out of its cache took no time
        left *= elapsed / passed
    words = f"{left:.0f} s" if left < 100 else f"{left / 60:.0f} min"
    return f"stage {place + 1} of {len(STAGES)}, {stage}: about {words} left"
