"""Wrong params: every key with values of other types and sizes, refused before measuring or good."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.faults import judge
from tests.faults.judge import Judgement, Undisturbed
from tests.faults.verdict import Trial, Verdict
from tests.faults.world import STAGES, Ended, World

VALUES: tuple[Any, ...] = (
    "text", "", -1, 0, 1, 2, 0.5, 1e-3, 0.99, 1.0, 1.5, None, [], {}, [0.1], [0.9, 0.1], [0.3, 0.3],
    True, False, float("nan"), float("inf"), "~nobody/x", "5e-3", ["F16", "Q4_K"], ["odd"], {"a": 1}, 7, 31,
    "2026-01-01", -0.0,
)  # fmt: skip
DELETED = object()
COSTLY = ("trials", "rounds", "seed")
"""Keys of which a large value is a wish, not a fault."""


def trials(
    fresh: World, calm: Undisturbed, scratch: Path, rng: random.Random, numbers: Iterable[int]
) -> Iterator[Trial]:
    """One key with another value each. What `sample` and `evaluate` take must go to the end."""
    for number in numbers:
        world = fresh.copy(scratch / f"asked-{number}")
        params = world.params
        section, key = rng.choice(sorted(_leaves(params), key=str))
        value = rng.choice((*VALUES, DELETED))
        if value is DELETED:
            del section[key]
        else:
            section[key] = value
        world.write_params(params)
        ended = world.run(STAGES)
        verdict, words = judge.started(ended) or (Verdict.UNHARMED, ended.last)
        if verdict.good and ended.code == 2:
            verdict, words = _refused(world, str(key), ended)
        shown = "deleted" if value is DELETED else repr(value)
        yield Trial("params", f"{key}: {shown}", verdict, words, ended.seconds)
        shutil.rmtree(world.folder)


def _refused(world: World, key: str, ended: Ended) -> Judgement:
    """A refusal names the key or its file, and comes before anything was measured."""
    if key not in ended.output and "params.yaml" not in ended.output:
        return Verdict.SILENT, f"does not name {key}: {ended.last}"
    if judge.lines(world).get("evaluate"):
        return Verdict.SILENT, f"only after measuring, in {ended.stage}: {ended.last}"
    return Verdict.REFUSED, ended.last


def _leaves(section: Any) -> list[tuple[Any, Any]]:
    """Every place in nested sections, with the mapping or list that holds it."""
    found = []
    keys = section if isinstance(section, dict) else range(len(section))
    for key in keys:
        if key not in COSTLY:
            found.append((section, key))
            if isinstance(section[key], dict | list):
                found += _leaves(section[key])
    return found
