"""The front: architectures at further overall ratios, and the table that tells which are dominated."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from stages.files import InputError
from stages.metrics.objective import objective_of
from stages.sample.designs import BASELINES
from stages.sample.limits import limits_of
from stages.sample.space import Space, prunable_sites
from stages.search import front, outcome, tables
from stages.search.outcome import FINALIST, FRONT, WINNER, Candidate
from stages.search.rounds import GuidedSearch
from tests.small import COMMITTED, SMALL, budget_of, features_of, random_architectures

TARGET = "log_ppl.a"
SEARCH = COMMITTED.search.model_copy(
    update={"objective": {TARGET: 1.0}, "trials": 20, "finalists": 2, "front": [0.35, 0.12]}
)
SPACE = Space(SMALL, 4, dict.fromkeys(prunable_sites(SMALL, 0, 0), (0.0, 0.6)))
PAIRS = {a: {TARGET: 3 + a.overall_ratio(SMALL)} for a in random_architectures(SMALL, 40)}
BYTES = 4 * (SMALL.total_parameters - round(0.3 * SMALL.decoder_parameters))


@pytest.mark.parametrize("limited", [False, True])
def test_each_ratio_has_its_best_forecast_architecture(tmp_path: Path, limited: bool):
    """Also where the budget limits bytes: a further ratio replaces the budget, its limits included."""
    budget = budget_of(overall_ratio=0.25, tolerance=0.02, size_bytes=BYTES if limited else None)
    limits = limits_of(SMALL, budget, None)
    features, train = (
        features_of(tmp_path),
        COMMITTED.train_predictor.model_copy(
            update={"trees": 30, "model": "additive+xgboost", "learning_rate": 0.05}
        ),
    )
    guided = GuidedSearch(
        features, [TARGET], SEARCH, train, budget,
        lambda predictor, pairs: SPACE, lambda architectures, number: {}, None, limits,
    )  # fmt: skip
    predictor = guided.learn(PAIRS)
    found = front.work(guided, predictor, SPACE, PAIRS)
    assert [w.design for w in found] == [FRONT, FRONT]
    for work, ratio in zip(found, SEARCH.front, strict=True):
        assert ratio - 1e-9 <= work.architecture.overall_ratio(SMALL) <= ratio + 0.02 + 1e-9
        trials = guided.ask(predictor, SPACE, SEARCH.rounds + 1, PAIRS, ratio)
        forecast = predictor.forecast(features.row(work.architecture)[None])
        best = objective_of({t: float(v[0]) for t, v in forecast.items()}, SEARCH.objective)
        assert best == pytest.approx(min(t.objective for t in trials))
    if limited:
        assert not any(limit.allows(found[1].architecture) for limit in limits)


def test_a_ratio_beyond_the_space_is_refused(tmp_path: Path):
    search = SEARCH.model_copy(update={"front": [0.9]})
    train = COMMITTED.train_predictor.model_copy(update={"model": "additive"})
    guided = GuidedSearch(
        features_of(tmp_path), [TARGET], search, train, budget_of(overall_ratio=0.25, tolerance=0.02),
        lambda predictor, pairs: SPACE, lambda architectures, number: {},
    )  # fmt: skip
    with pytest.raises(InputError, match=r"0\.9"):
        front.work(guided, guided.learn(PAIRS), SPACE, PAIRS)


def candidates() -> list[Candidate]:
    names = [*BASELINES, WINNER, FINALIST, FRONT, FRONT]
    ratios = [0.0, 0.24, 0.25, 0.25, 0.26, 0.1, 0.4]
    perplexities = [20.0, 50.0, 44.0, 38.0, 39.0, 25.0, 37.0]
    made = zip(names, random_architectures(SMALL, 7), ratios, perplexities, strict=True)
    return [
        Candidate(name, a, ratio, {"ppl.a": ppl, "log_ppl.a": math.log(ppl)}, {TARGET: 3.5}, 1.0)
        for name, a, ratio, ppl in made
    ]


def test_the_table_has_a_row_an_architecture_by_ratio():
    table = tables.front_table(front.rows(candidates(), SMALL))
    assert table["name"].tolist() == ["dense", "front", "uniform", "simple", "winner", "front"]
    assert table["overall_ratio"].is_monotonic_increasing
    assert table["forecast.ppl.a"].isna().tolist() == [True, False, True, True, False, False]
    assert table.loc[4, "forecast.ppl.a"] == pytest.approx(math.exp(3.5))
    by_id = {c.architecture.id: c.architecture for c in candidates()}
    for row in table.to_dict("records"):
        widths = by_id[row["architecture"]]
        removed = SMALL.decoder_parameters - widths.kept_parameters(SMALL)
        assert row["parameters"] == SMALL.total_parameters - removed


def test_the_table_says_what_is_taken_of_limits():
    limits = limits_of(SMALL, budget_of(overall_ratio=0.25, size_bytes=BYTES), None)
    table = tables.front_table(front.rows(candidates(), SMALL, limits))
    assert [c for c in table.columns if c.startswith("takes.")] == ["takes.size_bytes"]
    assert (table["takes.size_bytes"] == 4 * table["parameters"]).all()


def test_the_front_at_40_percent_dominates_what_it_beats_at_less():
    table = tables.front_table(front.rows(candidates(), SMALL))
    assert dict(zip(table["architecture"], table["dominated"], strict=True)) == {
        c.architecture.id: c.name in ("uniform", "simple", WINNER) for c in candidates() if c.name != FINALIST
    }


def test_dominated_by_hand():
    assert front.dominated([(0.2, 30, 40), (0.3, 30, 40), (0.3, 29, 41)]) == [True, False, False]
    assert front.dominated([(0.2, 30), (0.2, 30)]) == [False, False]  # equals do not beat each other
    assert front.dominated([(0.1, 25), (0.2, 30), (0.15, 31), (0.2, 29.5)]) == [False, True, True, False]


def test_every_row_can_be_found_again_with_its_widths(tmp_path: Path):
    """The table names architectures by id; their widths are in the outcome."""
    outcome.write(tmp_path / "outcome.json", candidates())
    tables.write_front(tmp_path / "front.csv", front.rows(candidates(), SMALL))
    widths = {c.architecture.id: c.architecture for c in outcome.read(tmp_path / "outcome.json")}
    written = tables.read_front(tmp_path / "front.csv")
    assert written == front.rows(candidates(), SMALL)
    for row in written:
        assert widths[row.architecture].id == row.architecture


def test_a_perplexity_that_is_not_finite_is_dominated():
    broken = [replace(c, metrics={"ppl.a": math.inf}) if c.name == "uniform" else c for c in candidates()]
    table = tables.front_table(front.rows(broken, SMALL)).set_index("name")
    assert table.loc["uniform", "dominated"]
