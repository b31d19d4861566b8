"""The comparison of samplers: equal forecasts, and what it prints is what was found."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from stages.architecture import Architecture
from stages.build_dataset import table
from stages.build_dataset.features import Features
from stages.files import InputError
from stages.metrics.objective import objective_of
from stages.sample import designs
from stages.search.studies import SearchTask
from stages.train_predictor.predictor import Predictor
from tests.benchmarks import samplers
from tests.small import COMMITTED, SMALL, budget_of, write_scores

SECTION = COMMITTED.model_copy(
    update={
        "budget": budget_of(overall_ratio=0.25, tolerance=0.05),
        "sample": COMMITTED.sample.model_copy(
            update={"first_layers_kept": 1, "last_layers_kept": 0, "mlp_granularity": 4, "spread": 9}
        ),
        "train_predictor": COMMITTED.train_predictor.model_copy(update={"trees": 20}),
    }
)


@pytest.fixture(scope="module")
def question() -> SearchTask:
    return samplers.question_of(*samplers.synthetic(SMALL, SECTION), SECTION, from_nothing=False)


def test_made_up_pairs_are_those_of_params_designs():
    features, pairs, predictor = samplers.synthetic(SMALL, SECTION)
    assert features.curves is not None
    expected = designs.all_designs(SMALL, SECTION.sample, SECTION.budget)
    assert set(pairs["architecture"]) == {d.architecture.id for d in expected}
    assert set(predictor.models) == set(SECTION.search.objective)


def test_every_sampler_has_as_many_forecasts_and_the_best_is_told(question: SearchTask):
    asked: list[Architecture] = []

    def counted(architecture: Architecture) -> Mapping[str, float]:
        asked.append(architecture)
        return question.forecast(architecture)

    counting = dataclasses.replace(question, forecast=counted)
    for result in samplers.compare(counting, SECTION.search, [8, 12], 2):
        assert len(asked) == 2 * result.forecasts
        halves = asked[: result.forecasts], asked[result.forecasts :]
        for half, best in zip(halves, result.best, strict=True):
            found = (objective_of(question.forecast(a), SECTION.search.objective) for a in half)
            assert best == pytest.approx(min(found))
        asked.clear()


def test_all_samplers_are_compared_at_every_number(question: SearchTask):
    found = list(samplers.compare(question, SECTION.search, [6, 9], 1))
    assert [(r.forecasts, r.sampler) for r in found] == [(n, s) for n in (6, 9) for s in samplers.SAMPLERS]


def test_the_search_can_do_without_damage_curves(question: SearchTask):
    assert question.damage is not None
    made = samplers.synthetic(SMALL, SECTION)
    bare = samplers.question_of(*made, SECTION, from_nothing=True)
    assert bare.damage is None
    assert bare.space == question.space


def test_a_budget_without_an_overall_ratio_is_refused():
    made = samplers.synthetic(SMALL, SECTION)
    bytes_only = budget_of(overall_ratio=None, size_bytes=10_000)
    with pytest.raises(InputError, match="overall_ratio is null"):
        samplers.question_of(*made, SECTION.model_copy(update={"budget": bytes_only}), False)


def test_a_finished_run_is_read(tmp_path: Path):
    features, pairs, predictor = samplers.synthetic(SMALL, SECTION)
    designed = designs.all_designs(SMALL, SECTION.sample, SECTION.budget)
    designs.write(tmp_path / "sample" / "architectures.json", SMALL, designed)
    assert features.curves is not None
    features.curves.write(tmp_path / "build_dataset" / "damage.json")
    (tmp_path / "evaluate").mkdir()
    write_scores(tmp_path / "evaluate" / "importance.safetensors", SMALL)
    targets = list(SECTION.search.objective)
    table.write(tmp_path / "build_dataset" / "pairs.parquet", pairs, features.names, targets)
    predictor.save(tmp_path / "train_predictor" / "predictor")
    found: tuple[Features, object, Predictor] = samplers.finished(tmp_path, SECTION)
    assert found[2].digest == predictor.digest
    architecture = designed[-1].architecture
    assert found[0].row(architecture) == pytest.approx(features.row(architecture))


def test_it_prints_a_row_a_sampler(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(samplers, "SMOLLM2", SMALL)
    monkeypatch.setattr(samplers, "load_params", lambda: SECTION)
    monkeypatch.setattr(sys, "argv", ["samplers", "--synthetic", "--seeds", "1", "--forecasts", "6"])
    samplers.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 6 |")]
    assert [row.split(" | ")[1] for row in rows] == list(samplers.SAMPLERS)
