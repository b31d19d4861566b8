"""The search on forecasts, with a predictor whose law is known."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from stages.architecture import Architecture, Kind, LayerWidth, Site
from stages.build_dataset.features import Array, Features
from stages.config.params import Narrowing
from stages.files import InputError
from stages.metrics.objective import objective_of
from stages.sample.space import Space, prunable_sites
from stages.search import allocation, narrowing, studies
from stages.search.studies import SearchTask, Trial
from tests.small import COMMITTED, SMALL, features_of

RATIO, TOLERANCE = 0.2, 0.02
SECTION = COMMITTED.search.model_copy(
    update={"seed": 0, "bundle": 1, "trials": 60, "objective": {"log_ppl.a": 1.0, "log_ppl.b": 3.0}}
)
PRUNABLE = prunable_sites(SMALL, 1, 0)
IMPORTANCE = {str(site): 1 / (1 + i) for i, site in enumerate(SMALL.sites())}
NARROWING = Narrowing(
    by="importance",
    sensitive=0.3,
    sensitive_ratios=[0.0, 0.3],
    insensitive=0.3,
    insensitive_ratios=[0.1, 0.7],
    other_ratios=[0.0, 0.5],
)
SPACE = narrowing.space_of(SMALL, 4, narrowing.narrow(SMALL, PRUNABLE, IMPORTANCE, NARROWING))


class KnownLaw:
    """A predictor that is an additive law: each site's weight times its ratio, squared for log_ppl.b."""

    def __init__(self, features: Features) -> None:
        rng = np.random.default_rng(4)
        self.sites = len(features.sites)
        self.weights = rng.exponential(size=self.sites) ** 2

    def forecast(self, features: Array) -> dict[str, Array]:
        ratios = features[:, : self.sites]
        return {"log_ppl.a": 3 + ratios @ self.weights, "log_ppl.b": 4 + ratios**2 @ self.weights}


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    return features_of(tmp_path_factory.mktemp("features"))


def task(
    features: Features, space: Space = SPACE, seed: int = 0, ratio: float = RATIO, name: str = "a"
) -> SearchTask:
    known = KnownLaw(features)

    def forecast(architecture: Architecture) -> dict[str, float]:
        found = known.forecast(features.row(architecture)[None])
        return {target: float(values[0]) for target, values in found.items()}

    return SearchTask(space, ratio, TOLERANCE, forecast, seed, name)


def search(features: Features, seed: int = 0, **section: Any) -> list[Trial]:
    return studies.search(task(features, seed=seed), SECTION.model_copy(update=section))


@pytest.fixture(scope="module")
def trials(features: Features) -> list[Trial]:
    return search(features)


def test_every_trial_meets_the_budget_and_the_narrowed_limits(trials: list[Trial]):
    assert [t.number for t in trials] == list(range(60))
    for trial in trials:
        assert 0.2 - 1e-9 <= trial.architecture.overall_ratio(SMALL) <= 0.22 + 1e-9
        assert trial.architecture.widths[0] == SMALL.widest
        for site, (low, high) in SPACE.limits.items():
            ratio = trial.architecture.site_ratio(SMALL, site)
            reachable = any(low <= o.ratio <= high for o in SPACE.allowed[site])
            assert not reachable or low - 1e-9 <= ratio <= high + 1e-9


def test_trials_tell_their_own_forecast(trials: list[Trial], features: Features):
    known = KnownLaw(features)
    for trial in trials:
        row = np.array([[trial.architecture.site_ratio(SMALL, site) for site in SMALL.sites()]])
        a = 3 + float((row @ known.weights)[0])
        b = 4 + float((row**2 @ known.weights)[0])
        assert trial.forecast == pytest.approx({"log_ppl.a": a, "log_ppl.b": b})
        assert trial.objective == pytest.approx((a + 3 * b) / 4)


def test_the_first_trial_wishes_the_same_of_every_site(trials: list[Trial]):
    """Uniform within the limits is where a search should start."""
    wishes = dict.fromkeys(SPACE.limits, RATIO)
    assert trials[0].architecture == SPACE.project(wishes, 0.2, 0.02, at_least=True)


def test_a_seed_gives_the_same_trials_again(features: Features, trials: list[Trial]):
    assert search(features) == trials
    other = search(features, seed=1)
    assert [t.architecture for t in other][1:] != [t.architecture for t in trials][1:]


@pytest.mark.parametrize("bundle", [2, 4])
def test_neighbours_of_a_bundle_share_their_wish_in_the_first_half(features: Features, bundle: int):
    """With one interval for all, sites of a kind in a bundle end at most a step apart."""
    space = Space(SMALL, 4, dict.fromkeys(PRUNABLE, (0.0, 0.7)))
    section = SECTION.model_copy(update={"trials": 40, "bundle": bundle})
    found = studies.search(task(features, space), section)
    groups = [range(start, min(start + bundle, 6)) for start in range(1, 6, bundle)]

    def apart(trial: Trial) -> int:
        kept = [[trial.architecture.widths[layer].channels for layer in layers] for layers in groups]
        return max(max(channels) - min(channels) for channels in kept)

    assert max(apart(trial) for trial in found[:20]) <= 4
    assert max(apart(trial) for trial in found[20:]) > 4


def test_the_second_half_stays_near_the_best_of_the_first(features: Features):
    found = search(features, trials=80)
    best = min(found[:40], key=lambda t: t.objective).architecture
    step = 1 / 3  # two KV groups with three heads: attention widths lie far apart
    for trial in found[40:]:
        for site in SPACE.limits:
            strayed = abs(trial.architecture.site_ratio(SMALL, site) - best.site_ratio(SMALL, site))
            assert strayed <= studies.NEAR + (step if site.kind is Kind.ATTENTION else 0.1) + 0.1
    assert min(t.objective for t in found[40:]) <= min(t.objective for t in found[:40])


def test_the_second_half_begins_with_what_is_known_to_be_good(features: Features):
    good = search(features, seed=5, trials=200)
    best = min(good, key=lambda t: t.objective).architecture
    found = studies.search(task(features), SECTION.model_copy(update={"trials": 60}), [best])
    near = min(studies.distance(best, trial.architecture) for trial in found[30:32])
    assert near <= min(studies.distance(best, trial.architecture) for trial in found[:30])


@pytest.mark.parametrize("sampler", ["nsga2", "random"])
def test_other_samplers_stand_under_the_same_interface(features: Features, sampler: str):
    found = search(features, sampler=sampler, trials=120)
    assert len(found) == 120
    assert all(0.2 - 1e-9 <= t.architecture.overall_ratio(SMALL) <= 0.22 + 1e-9 for t in found)
    assert search(features, sampler=sampler, trials=120) == found
    assert [t.architecture for t in found] != [t.architecture for t in search(features, trials=120)]


@pytest.mark.parametrize("dies_at", [1, 2, 16, 31, 45, 60])
def test_an_interrupted_search_finds_what_an_undisturbed_one_does(
    features: Features, tmp_path: Path, dies_at: int
):
    """Studies that were finished aren't asked again."""
    storage = tmp_path / "studies.log"
    asked = 0

    def dying(architecture: Architecture) -> dict[str, float]:
        nonlocal asked
        asked += 1
        if asked == dies_at:
            raise KeyboardInterrupt
        return dict(task(features).forecast(architecture))

    with pytest.raises(KeyboardInterrupt):
        studies.search(replace(task(features), forecast=dying), SECTION, storage=storage)
    found = studies.search(task(features), SECTION, storage=storage)
    assert found == search(features)
    assert studies.search(task(features), SECTION, storage=storage) == found
    kept = optuna.get_all_study_summaries(JournalStorage(JournalFileBackend(str(storage))))
    assert {study.study_name: study.n_trials for study in kept} == {"a bundles": 30, "a sites": 30}


def test_a_studies_file_cut_between_lines_changes_no_outcome(features: Features, tmp_path: Path):
    storage = tmp_path / "studies.log"
    found = studies.search(task(features), SECTION, storage=storage)
    lines = storage.read_bytes().splitlines(keepends=True)
    for kept in (1, 3, 30, len(lines) // 2, len(lines) - 1):
        storage.write_bytes(b"".join(lines[:kept]))
        assert studies.search(task(features), SECTION, storage=storage) == found, kept


def test_the_studies_of_another_search_are_forgotten(features: Features, tmp_path: Path):
    storage = tmp_path / "studies.log"
    studies.forget_others(storage, "a")
    studies.search(task(features), SECTION, storage=storage)
    studies.forget_others(storage, "a")
    assert storage.is_file()
    studies.forget_others(storage, "b")
    assert not storage.exists()


def random_objectives(features: Features, count: int) -> list[float]:
    """Objectives of wishes that are drawn uniformly within the limits."""
    known, rng = KnownLaw(features), random.Random(0)
    found = []
    for _ in range(count):
        wishes = {site: rng.uniform(*SPACE.limits[site]) for site in SPACE.limits}
        architecture = SPACE.project(wishes, 0.2, 0.02, at_least=True)
        values = known.forecast(features.row(architecture)[None])
        found.append(objective_of({k: float(v[0]) for k, v in values.items()}, SECTION.objective))
    return found


def test_it_learns_and_beats_random_search_at_equal_forecasts(features: Features):
    drawn = random_objectives(features, 300)
    best = [min(drawn[start : start + 100]) for start in (0, 100, 200)]
    searches = [[t.objective for t in search(features, seed, trials=100)] for seed in range(3)]
    assert np.mean([min(objectives) for objectives in searches]) < np.mean(best)
    # the last trials come from where the early ones were good
    assert np.median([objectives[-30:] for objectives in searches]) < np.quantile(drawn, 0.1)


def test_distance_counts_sites():
    a = Architecture((LayerWidth(2, 3, 64), LayerWidth(2, 3, 64)))
    assert studies.distance(a, a) == 0
    assert studies.distance(a, Architecture((LayerWidth(1, 2, 64), LayerWidth(2, 3, 64)))) == 1
    assert studies.distance(a, Architecture((LayerWidth(2, 3, 60), LayerWidth(2, 3, 60)))) == 2
    assert studies.distance(a, Architecture((LayerWidth(2, 2, 0), LayerWidth(1, 3, 8)))) == 4


def differing_sites(a: Architecture, b: Architecture) -> int:
    return sum(a.widths[s.layer].of(s.kind) != b.widths[s.layer].of(s.kind) for s in SMALL.sites())


@pytest.mark.parametrize("min_distance", [1, 3, 5])
def test_finalists_are_the_best_that_differ(trials: list[Trial], min_distance: int):
    chosen = studies.finalists(trials, 5, min_distance)
    assert len(chosen) == 5
    assert [t.objective for t in chosen] == sorted(t.objective for t in chosen)
    assert chosen[0].objective == min(t.objective for t in trials)
    for a, b in itertools.combinations(chosen, 2):
        assert differing_sites(a.architecture, b.architecture) >= min_distance
    # who was passed over is worse than all chosen, or too near to a better one that was chosen
    for trial in trials:
        if trial not in chosen and trial.objective < chosen[-1].objective:
            better = [c for c in chosen if c.objective <= trial.objective]
            assert any(differing_sites(trial.architecture, c.architecture) < min_distance for c in better)


def test_finalists_take_one_architecture_once():
    same = [Trial(i, SMALL.dense(), {"x": 1.0}, 1.0) for i in range(5)]
    assert studies.finalists(same, 1, 1) == same[:1]
    assert studies.finalists(same, 2, 1) == same[:1]
    assert studies.finalists(same, 0, 1) == []
    assert studies.finalists(same, 2, 1, [SMALL.dense()]) == []


def test_where_there_are_too_few_finalists_all_are_taken(trials: list[Trial]):
    chosen = studies.finalists(trials, 500, 9)
    assert {t.architecture for t in chosen} == {t.architecture for t in trials}
    assert len({t.architecture for t in chosen}) == len(chosen)


def test_what_is_taken_is_not_chosen_again(trials: list[Trial]):
    first = studies.finalists(trials, 3, 1)
    others = studies.finalists(trials, 3, 1, [t.architecture for t in first])
    assert not {t.architecture for t in first} & {t.architecture for t in others}


def test_an_unreachable_budget_is_told(features: Features):
    with pytest.raises(InputError, match="this space reaches only"):
        studies.search(task(features, ratio=0.9), SECTION)


def test_no_site_of_an_exempt_kind_is_touched(features: Features):
    """A space of MLPs alone leaves all attention dense."""
    space = Space(SMALL, 4, {site: (0.0, 0.8) for site in SMALL.sites() if site.kind is Kind.MLP})
    section = SECTION.model_copy(update={"trials": 10})
    for trial in studies.search(task(features, space), section):
        ratios = [trial.architecture.site_ratio(SMALL, Site(layer, Kind.ATTENTION)) for layer in range(6)]
        assert ratios == [0.0] * 6


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_with_damage_curves_every_trial_meets_the_budget_and_the_first_is_the_cheapest(
    features: Features, sampler: str
):
    known = KnownLaw(features)
    weights = dict(zip(SMALL.sites(), known.weights, strict=True))

    def damage(site: Site, ratio: float) -> float:
        return float(weights[site]) * (ratio + 3 * ratio**2) / 4  # what the objective of SECTION costs

    priced = replace(task(features), damage=damage)
    trials = studies.search(priced, SECTION.model_copy(update={"sampler": sampler}))
    ratios = [t.architecture.overall_ratio(SMALL) for t in trials]
    assert len(trials) == SECTION.trials
    assert all(RATIO - 1e-9 <= ratio <= RATIO + TOLERANCE + 1e-9 for ratio in ratios)
    first = SPACE.project(allocation.cheapest(SPACE, damage, RATIO), RATIO, TOLERANCE, at_least=True)
    assert trials[0].architecture == first
    plain = search(features, sampler=sampler)
    assert min(t.objective for t in trials) <= min(t.objective for t in plain) + 1e-9
    assert [
        t.architecture for t in studies.search(priced, SECTION.model_copy(update={"sampler": sampler}))
    ] == [t.architecture for t in trials]


def test_finalists_are_less_unlike_where_the_trials_allow_no_more(features: Features):
    trials = search(features)
    wide = studies.finalists(trials, 4, 1000)
    assert len({t.architecture for t in wide}) == 4
    apart = min(studies.distance(a.architecture, b.architecture) for a, b in itertools.combinations(wide, 2))
    assert apart >= min(
        studies.distance(a.architecture, b.architecture)
        for a, b in itertools.combinations(studies.finalists(trials, 4, 1), 2)
    )
