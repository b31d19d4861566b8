"""Rounds of forecast, measurement and learning, on a law that is known and not additive."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages.architecture import Architecture, Kind
from stages.build_dataset.features import Features
from stages.evaluate.results.damage import DamageCurves
from stages.files import InputError
from stages.metrics.objective import objective_of
from stages.sample.limits import Limit, limits_of
from stages.sample.space import Space, prunable_sites
from stages.search import allocation
from stages.search.rounds import GuidedSearch, Metrics, Round
from stages.train_predictor.predictor import Predictor
from tests.small import COMMITTED, SMALL, budget_of, features_of, random_architectures

WEIGHTS = {"log_ppl.a": 1.0}
BUDGET = budget_of(overall_ratio=0.25, tolerance=0.02)
SEARCH = COMMITTED.search.model_copy(
    update={
        "objective": WEIGHTS,
        "trials": 60,
        "rounds": 3,
        "min_gain": 0.0,
        "per_round": 4,
        "min_distance": 2,
        "finalists": 3,
    }
)
TRAIN = COMMITTED.train_predictor.model_copy(
    update={"trees": 60, "model": "additive+xgboost", "learning_rate": 0.05}
)
SPACE = Space(SMALL, 4, dict.fromkeys(prunable_sites(SMALL, 0, 0), (0.0, 0.6)))
COSTS = np.random.default_rng(3).exponential(size=12)


def truth(architecture: Architecture) -> Metrics:
    """Each site costs by the square of its ratio; neighbouring sites cost more together."""
    ratios = np.array([architecture.site_ratio(SMALL, site) for site in SMALL.sites()])
    return {"log_ppl.a": float(3 + COSTS @ ratios**2 + 2 * (ratios[1:] * ratios[:-1]).sum())}


class Meter:
    """Measures by the law, and counts what it had to measure."""

    def __init__(self) -> None:
        self.measured: list[Architecture] = []

    def __call__(self, architectures: Sequence[Architecture], number: int) -> dict[Architecture, Metrics]:
        self.measured += architectures
        return {a: truth(a) for a in architectures}


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    return features_of(tmp_path_factory.mktemp("features"))


def narrow(predictor: Predictor, pairs: pd.DataFrame) -> Space:
    return SPACE


def guided(features: Features, meter: Meter, storage: Path | None = None) -> GuidedSearch:
    return GuidedSearch(features, list(WEIGHTS), SEARCH, TRAIN, BUDGET, narrow, meter, storage)


PAIRS = {a: truth(a) for a in random_architectures(SMALL, 60)}


@pytest.fixture(scope="module")
def run(features: Features) -> tuple[Meter, list[Round], dict[Architecture, Metrics]]:
    meter = Meter()
    search = guided(features, meter)
    rounds, known = search.run(PAIRS, search.learn(PAIRS))
    return meter, rounds, known


def test_each_round_measures_so_many_new_architectures_of_the_budget(
    run: tuple[Meter, list[Round], dict[Architecture, Metrics]],
):
    meter, rounds, known = run
    assert [r.number for r in rounds] == [1, 2, 3]
    assert [len(r.measured) for r in rounds] == [4, 4, 4]
    assert len(set(meter.measured)) == 12
    assert not set(meter.measured) & set(PAIRS)
    assert set(known) == set(PAIRS) | set(meter.measured)
    assert all(0.25 - 1e-9 <= a.overall_ratio(SMALL) <= 0.27 + 1e-9 for a in meter.measured)


def test_each_rounds_predictor_knows_what_was_measured_before_it_and_no_more(
    features: Features, run: tuple[Meter, list[Round], dict[Architecture, Metrics]]
):
    _, rounds, known = run
    search = guided(features, Meter())
    seen = dict(PAIRS)
    for found in rounds:
        assert found.predictor.digest == search.learn(seen).digest
        seen |= found.measured
    assert search.learn(known).digest not in {r.predictor.digest for r in rounds}


def test_errors_by_hand(run: tuple[Meter, list[Round], dict[Architecture, Metrics]]):
    found = run[1][0]
    missed = [t.forecast["log_ppl.a"] - truth(t.architecture)["log_ppl.a"] for t in found.chosen]
    errors = found.errors(WEIGHTS)
    assert errors["bias.log_ppl.a"] == pytest.approx(sum(missed) / 4)
    assert errors["rmse.log_ppl.a"] == pytest.approx((sum(m * m for m in missed) / 4) ** 0.5)
    assert errors["best_measured_objective"] == min(truth(t.architecture)["log_ppl.a"] for t in found.chosen)
    assert -1 <= errors["spearman.objective"] <= 1


def test_rounds_beat_random_architectures_of_the_budget(
    run: tuple[Meter, list[Round], dict[Architecture, Metrics]],
):
    rng = np.random.default_rng(0)
    drawn = [
        SPACE.project({s: rng.uniform(0, 0.6) for s in SPACE.limits}, 0.25, 0.02, at_least=True)
        for _ in range(72)  # as many as pairs and rounds together
    ]
    best = min(truth(a)["log_ppl.a"] for a in run[0].measured)
    assert best < min(truth(a)["log_ppl.a"] for a in drawn)


def test_the_best_are_of_the_budget_and_in_order(
    features: Features, run: tuple[Meter, list[Round], dict[Architecture, Metrics]]
):
    known = run[2]
    best = guided(features, Meter()).best(known, 0.25)
    values = [objective_of(known[a], WEIGHTS) for a in best]
    assert values == sorted(values)
    assert values[0] == min(truth(a)["log_ppl.a"] for a in known if 0.25 <= a.overall_ratio(SMALL) <= 0.27)
    assert len(best) == 3


def test_killed_in_the_second_round_and_started_again(
    features: Features, run: tuple[Meter, list[Round], dict[Architecture, Metrics]], tmp_path: Path
):
    """What was measured is not chosen anew: the same architectures come again, and cost nothing."""

    class Dying(Meter):
        def __call__(self, architectures: Sequence[Architecture], number: int) -> dict[Architecture, Metrics]:
            if number == 2:
                raise KeyboardInterrupt
            return super().__call__(architectures, number)

    storage = tmp_path / "studies.log"
    search = guided(features, Dying(), storage)
    with pytest.raises(KeyboardInterrupt):
        search.run(PAIRS, search.learn(PAIRS))
    again = guided(features, Meter(), storage)
    rounds, _ = again.run(PAIRS, again.learn(PAIRS))
    assert [list(r.measured) for r in rounds] == [list(r.measured) for r in run[1]]


def test_one_predictor_serves_every_budget(
    features: Features, run: tuple[Meter, list[Round], dict[Architecture, Metrics]]
):
    """No new measurement is needed to ask for another overall ratio."""
    meter = Meter()
    search = guided(features, meter)
    predictor = search.learn(run[2])
    best = []
    for ratio in (0.1, 0.2, 0.3, 0.4):
        trials = search.ask(predictor, SPACE, 4, run[2], ratio)
        assert all(ratio - 1e-9 <= t.architecture.overall_ratio(SMALL) <= ratio + 0.02 + 1e-9 for t in trials)
        best.append(min(t.objective for t in trials))
    assert best == sorted(best)
    assert meter.measured == []


def test_limits_of_bytes_and_milliseconds_hold_in_every_round(features: Features):
    """The ratio follows from them; what was measured before counts where it is within them."""

    def milliseconds(kind: Kind, width: tuple[int, ...]) -> float:
        return 1 + (3 * width[0] * width[1] if kind is Kind.ATTENTION else width[0] / 4)

    dense = SMALL.dense()
    size = 4 * (SMALL.total_parameters - round(0.2 * SMALL.decoder_parameters))
    (in_bytes,) = limits_of(SMALL, budget_of(overall_ratio=None, size_bytes=size), None)
    in_ms = Limit("decode_ms", 0.0, 5.0, milliseconds)
    in_ms = replace(in_ms, most=0.85 * in_ms.of(dense))
    meter = Meter()
    budget = budget_of(overall_ratio=None, size_bytes=size, decode_ms=in_ms.most, tolerance=0.01)
    search = GuidedSearch(
        features, list(WEIGHTS), SEARCH, TRAIN, budget, narrow, meter, limits=[in_bytes, in_ms]
    )
    rounds, known = search.run(PAIRS, search.learn(PAIRS))
    for trial in (t for r in rounds for t in r.trials):
        assert in_bytes.of(trial.architecture) <= size
        assert in_ms.of(trial.architecture) <= in_ms.most + 1e-9
        used = (in_bytes.of(trial.architecture) / size, in_ms.of(trial.architecture) / in_ms.most)
        assert max(used) > 0.97
    best = search.best(known)
    assert len(meter.measured) == 12
    assert min(truth(a)["log_ppl.a"] for a in meter.measured) >= truth(best[0])["log_ppl.a"]
    assert all(in_bytes.allows(a) and in_ms.allows(a) for a in best)


def test_with_damage_curves_the_plain_curves_choice_is_measured_first(features: Features):
    """Curves that are right up to a factor a site and know nothing of neighbours: rounds improve on them."""
    factors = np.exp(np.random.default_rng(8).normal(0, 0.4, 12))
    points = {
        site: [(r, float(cost * factor * r**2)) for r in (0.1, 0.3, 0.6)]
        for site, cost, factor in zip(SMALL.sites(), COSTS, factors, strict=True)
    }
    curved = replace(features, curves=DamageCurves(points))
    train = TRAIN.model_copy(update={"model": "curves+xgboost"})
    search = replace(guided(curved, Meter()), train=train)
    pairs = dict(list(PAIRS.items())[:8])
    rounds, known = search.run(pairs, search.learn(pairs))
    first = SPACE.project(
        allocation.cheapest(SPACE, DamageCurves(points).damage, 0.25), 0.25, BUDGET.tolerance, at_least=True
    )
    assert rounds[0].chosen[0].architecture == first
    assert first in known
    assert [len(r.measured) for r in rounds] == [4, 4, 4]
    found = [min(truth(a)["log_ppl.a"] for a in r.measured) for r in rounds]
    assert min(found) < truth(first)["log_ppl.a"]


def every(space: Space) -> list[Architecture]:
    """All architectures of the budget in a space of few sites."""
    options = [[(site, option) for option in space.allowed[site]] for site in space.limits]
    made = {space.architecture(dict(row)) for row in itertools.product(*options)}
    return [a for a in made if -1e-9 <= a.overall_ratio(SMALL) - 0.25 <= 0.02 + 1e-9]


FEW = Space(SMALL, 16, dict.fromkeys(list(prunable_sites(SMALL, 0, 0))[:7], (0.0, 0.7)))


def few(features: Features, meter: Meter) -> GuidedSearch:
    return replace(guided(features, meter), narrow=lambda *_: FEW)


def test_a_round_measures_what_new_there_is_and_says_so(
    features: Features, capsys: pytest.CaptureFixture[str]
):
    meter, there = Meter(), every(FEW)
    known = PAIRS | {a: truth(a) for a in there[1:]}
    search = few(features, meter)
    rounds, known = search.run(known, search.learn(known))
    assert set(known) >= set(there[1:])
    assert [len(r.measured) for r in rounds] in ([1, 0], [0])  # trials may miss the one that is left
    assert set(meter.measured) <= {there[0]}
    assert rounds[-1].errors(WEIGHTS) == {}
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(rounds)
    assert "trials hold 0 new architectures of the 4 of search.per_round: the search goes on" in said[-1]


def test_a_search_without_any_architecture_is_told(features: Features, monkeypatch: pytest.MonkeyPatch):
    search = few(features, Meter())
    known = {a: m for a, m in PAIRS.items() if not 0.25 - 1e-9 <= a.overall_ratio(SMALL) <= 0.27 + 1e-9}
    monkeypatch.setattr(GuidedSearch, "ask", lambda *_: [])
    with pytest.raises(InputError, match=r"0 trials hold 0 new .*none of the budget was measured before"):
        search.run(known, search.learn(known))
