"""How far a run of the pipeline is: which stage of six, and the time left by the plan, corrected as it runs.

`prunecast repro` plans a run and hands the plan on to the stages in the environment; a stage that is run
alone knows of none.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from stages.progress import duration

STAGES = ("sample", "evaluate", "build-dataset", "train-predictor", "search", "export")
VARIABLE = "PRUNECAST_PLAN"
"""A variable of the environment: planned seconds by stage, when the run began, and a file of stages begun."""
TRUSTED_S = 60.0
"""Planned seconds that must have passed before the plan is corrected by what they took."""


def environment(planned: Mapping[str, float], notes: Path) -> dict[str, str]:
    """What the stages are handed: the plan of a run that begins now, and a file for their notes."""
    return {VARIABLE: json.dumps({"planned": dict(planned), "begun": time.time(), "notes": str(notes)})}


def told(stage: str) -> str:
    """A line for the start of a stage, or nothing for what is no stage, or was not planned."""
    if stage not in STAGES or VARIABLE not in os.environ:
        return ""
    plan = json.loads(os.environ[VARIABLE])
    place, notes = STAGES.index(stage), Path(plan["notes"])
    ran = notes.read_text(encoding="utf-8").split() if notes.is_file() else []
    passed = sum(plan["planned"].get(name, 0.0) for name in ran)  # what DVC's cache held did not run
    left = sum(plan["planned"].get(name, 0.0) for name in STAGES[place:])
    if passed > TRUSTED_S:
        left *= (time.time() - plan["begun"]) / passed
    with contextlib.suppress(OSError):
        notes.write_text(" ".join([*ran, stage]), encoding="utf-8")
    return f"stage {place + 1} of {len(STAGES)}, {stage}: about {duration(left)} left"
