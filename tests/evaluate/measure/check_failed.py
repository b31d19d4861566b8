"""An architecture whose figures are no numbers is recorded and named; nothing is learned from it.

`test_failed` runs this file in a process of its own: a fork of one that has threads may wait for ever.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from stages.architecture import Architecture
from stages.evaluate.measure.evaluator import Evaluator
from stages.evaluate.network.weights import PrunedWeights
from stages.evaluate.results import journal
from stages.evaluate.results.journal import Row
from stages.sample import designs
from tests.faults.world import World

STAGES = ("sample", "evaluate", "build_dataset", "train_predictor", "search")


def overflowing(which: Callable[[Architecture], bool]) -> Callable[[], None]:
    """A hook that makes the first text of some architectures overflow, in whatever stage measures them."""

    def patch() -> None:
        measure = Evaluator.measure

        def measured(
            self: Evaluator,
            architecture: Architecture,
            branches: Collection[int] = (),
            weights: PrunedWeights | None = None,
        ) -> tuple[dict[str, float], dict[str, list[float]]]:
            metrics, samples = measure(self, architecture, branches, weights)
            if which(architecture):
                metrics["log_ppl.prose"] = math.nan
            return metrics, samples

        Evaluator.measure = measured  # type: ignore[method-assign]

    return patch


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World.make(tmp_path / "world")
    params = made.params
    params["sample"]["spread"] = 12
    params["search"] |= {"per_round": 6, "rounds": 2}
    made.write_params(params)
    return made


def rows_of(world: World, stage: str) -> list[Row]:
    return list(journal.read(world.folder / "data" / stage / "journal.jsonl").values())


def test_others_go_on_without_it(world: World) -> None:
    assert world.run(("sample",)).code == 0
    path = world.folder / "data" / "sample" / "architectures.json"
    baselines = [d.architecture for d in designs.baselines_of(designs.read(path)[1])]

    def some(architecture: Architecture) -> bool:
        return architecture not in baselines and int(architecture.id[:2], 16) % 3 == 0

    ended = world.run(STAGES[1:], overflowing(some))
    assert (ended.code, ended.stage) == (0, "search"), ended.output
    for stage in ("evaluate", "search"):
        rows = rows_of(world, stage)
        failed = [row for row in rows if row.failed]
        assert failed
        for row in rows:
            assert bool(row.failed) == some(row.architecture) == (not row.metrics)
        for row in failed:
            assert row.failed == "log_ppl.prose is nan"
            assert f"architecture {row.architecture.id} ({row.design}): {row.failed}" in ended.output
    pairs = pd.read_parquet(world.folder / "data" / "build_dataset" / "pairs.parquet")
    measured = {row.architecture.id for row in rows_of(world, "evaluate")}
    lost = {row.architecture.id for row in rows_of(world, "evaluate") if row.failed}
    assert set(pairs["architecture"]) == measured - lost
    once = len(rows_of(world, "search"))
    ended = world.run(("search",), overflowing(some))
    assert ended.code == 0, ended.output
    assert len(rows_of(world, "search")) == once  # what failed is not measured again


@pytest.mark.parametrize("name", designs.BASELINES)
def test_a_baseline_may_not_fail(world: World, name: str) -> None:
    assert world.run(("sample",)).code == 0
    path = world.folder / "data" / "sample" / "architectures.json"
    baselines: dict[str, Any] = {
        d.design: d.architecture for d in designs.baselines_of(designs.read(path)[1])
    }
    ended = world.run(("evaluate",), overflowing(lambda a: a == baselines[name]))
    assert ended.code == 2
    assert not ended.crashed
    assert f"({name}): log_ppl.prose is nan; expected a finite number" in ended.output
    assert "try evaluate.dtype: float32" in ended.output


def test_finalists_that_all_fail_are_told(world: World) -> None:
    """They measured well as pairs; in the search's own protocol they do not."""
    assert world.run(STAGES[:4]).code == 0
    path = world.folder / "data" / "sample" / "architectures.json"
    baselines = [d.architecture for d in designs.baselines_of(designs.read(path)[1])]
    ended = world.run(("search",), overflowing(lambda a: a not in baselines))
    assert ended.code == 2
    assert not ended.crashed
    assert "not one of the finalists measured finite numbers" in ended.output
