"""The course of a search: every measurement in order, the best so far, and when rounds end."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from stages.build_dataset.features import Features
from stages.evaluate.results.damage import DamageCurves
from stages.files import InputError
from stages.search import course
from tests.search.test_rounds import BUDGET, COSTS, PAIRS, TRAIN, Meter, guided, truth
from tests.small import SMALL, features_of


@pytest.fixture(scope="module")
def curved(tmp_path_factory: pytest.TempPathFactory) -> Features:
    points = {
        site: [(r, float(cost * r**2)) for r in (0.1, 0.3, 0.6)]
        for site, cost in zip(SMALL.sites(), COSTS, strict=True)
    }
    return replace(features_of(tmp_path_factory.mktemp("features")), curves=DamageCurves(points))


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    return features_of(tmp_path_factory.mktemp("features"))


def test_every_measurement_stands_in_order_with_the_best_of_the_budget_so_far(
    curved: Features, tmp_path: Path
):
    search = replace(guided(curved, Meter()), train=TRAIN.model_copy(update={"model": "curves+xgboost"}))
    rounds, known = search.run(PAIRS, search.learn(PAIRS))
    found = course.course(search, PAIRS, rounds)
    assert [e.evaluation for e in found] == [*range(1, len(known) + 1)]
    assert {e.architecture for e in found} == {a.id for a in known}
    assert [e.round for e in found] == sorted(e.round for e in found)
    within = [e.objective if e.in_budget else math.inf for e in found]
    assert [e.best for e in found] == [min(within[: i + 1]) for i in range(len(found))]
    assert all(e.in_budget == (0 <= e.overall_ratio - 0.25 + 1e-9 <= BUDGET.tolerance + 1e-9) for e in found)
    (rule,) = [e for e in found if e.one_shot]
    assert (rule.round, rule.architecture) == (1, rounds[0].chosen[0].architecture.id)
    course.write(tmp_path / "c.csv", found)
    assert course.read(tmp_path / "c.csv") == found
    by_id = {a.id: a for a in known}
    assert all(e.objective == truth(by_id[e.architecture])["log_ppl.a"] for e in found)


def test_steps_are_what_each_round_would_have_ended_with(curved: Features, features: Features):
    search = replace(guided(curved, Meter()), train=TRAIN.model_copy(update={"model": "curves+xgboost"}))
    rounds, _ = search.run(PAIRS, search.learn(PAIRS))
    first, *steps = course.steps(search, PAIRS, rounds)
    assert (first.name, first.architecture, first.evaluations) == ("one-shot", rounds[0].one_shot, 0)
    assert [s.name for s in steps] == [f"round {r.number}" for r in rounds]
    objectives = [s.objective for s in steps]
    assert objectives == sorted(objectives, reverse=True)
    assert objectives[0] <= first.objective
    assert [s.evaluations for s in steps] == [len(PAIRS) + 4 * (i + 1) for i in range(len(rounds))]
    for step, each in zip(steps[1:], rounds[1:], strict=True):
        before = steps[each.number - 2].objective
        assert each.gain == pytest.approx(before - step.objective)
    plain = guided(features, Meter())
    rounds, _ = plain.run(PAIRS, plain.learn(PAIRS))
    assert [s.name for s in course.steps(plain, PAIRS, rounds)] == [f"round {r.number}" for r in rounds]


@pytest.mark.parametrize(("least", "count"), [(0.0, 3), (1e6, 1)])
def test_a_round_that_gains_too_little_is_the_last(
    features: Features, least: float, count: int, capsys: pytest.CaptureFixture[str]
):
    """Where nothing of the budget was measured before, the first round's gain is unknown, and it goes on."""
    search = guided(features, Meter())
    search = replace(search, search=search.search.model_copy(update={"min_gain": least}))
    rounds, _ = search.run(PAIRS, search.learn(PAIRS))
    said = capsys.readouterr().out
    unknown = math.isinf(rounds[0].gain)
    assert len(rounds) == (count if not unknown or count == 3 else count + 1)
    assert ("less than search.min_gain 1e+06: no further round follows" in said) == (count == 1)


def test_a_row_that_lacks_a_figure_is_named(tmp_path: Path):
    path = tmp_path / "course.csv"
    head = "evaluation,round,architecture,overall_ratio,in_budget,one_shot,objective,best"
    path.write_text(f"{head}\n1,0,abc,0.2,True,False,,3.0\n")
    with pytest.raises(InputError, match=r"course.csv: a row lacks 'objective'; run `dvc repro search`"):
        course.read(path)
