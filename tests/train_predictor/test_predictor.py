"""The predictor: learns a known law, keeps its monotone law, is reproducible, and judges itself rightly."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.architecture import Architecture, Kind, Site
from stages.build_dataset.features import Array, Features
from stages.config.params import TrainPredictor
from stages.evaluate.results.damage import DamageCurves
from stages.files import InputError
from stages.metrics.objective import objective_of
from stages.metrics.registered import metric_of
from stages.train_predictor import predictor as predictor_module
from stages.train_predictor import pyfunc
from stages.train_predictor.predictor import Predictor, errors, evaluate
from tests.small import COMMITTED, SMALL, architectures_of, features_of, random_architectures

TARGETS = ["log_ppl.wiki", "quiz.log_likelihood", "quiz.accuracy"]
SECTION = COMMITTED.train_predictor.model_copy(
    update={"trees": 150, "seed": 0, "model": "xgboost", "learning_rate": 0.05}
)


def section_of(kind: str) -> TrainPredictor:
    return SECTION.model_copy(update={"model": kind})


KINDS = ["xgboost", "additive", "additive+xgboost"]
RNG = np.random.default_rng(1)
WEIGHTS = {site: float(weight) for site, weight in zip(SMALL.sites(), RNG.uniform(0.1, 2, 12), strict=True)}


def damage(architecture: Architecture) -> float:
    """The known law: each site adds its weight times the square of its ratio."""
    return sum(weight * architecture.site_ratio(SMALL, site) ** 2 for site, weight in WEIGHTS.items())


def pairs_of(features: Features, architectures: list[Architecture], noise: float = 0.0) -> pd.DataFrame:
    frame = pd.DataFrame(features.matrix(architectures), columns=features.names)
    spread = np.random.default_rng(2).normal(0, noise, len(architectures)) if noise else 0.0
    frame["log_ppl.wiki"] = np.array([3 + damage(a) for a in architectures]) + spread
    frame["quiz.log_likelihood"] = [-1 - 0.5 * damage(a) for a in architectures]
    frame["quiz.accuracy"] = [abs(np.sin(3 * a.overall_ratio(SMALL))) for a in architectures]
    return frame


class Learnt(NamedTuple):
    features: Features
    pairs: pd.DataFrame
    predictor: Predictor


@pytest.fixture(scope="module")
def learnt_by(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Learnt]:
    """Predictors of every kind, taught the same noisy pairs."""
    features = features_of(tmp_path_factory.mktemp("features"))
    pairs = pairs_of(features, random_architectures(SMALL, 250), noise=0.3)
    sections = {kind: section_of(kind) for kind in KINDS}
    return {
        kind: Learnt(features, pairs, Predictor.fit(pairs, features.names, TARGETS, section))
        for kind, section in sections.items()
    }


@pytest.fixture(scope="module")
def curved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Learnt]:
    """Predictors with damage curves, which are right up to a factor a site."""
    points = {
        site: [(r, float(weight * factor * r**2)) for r in (0.1, 0.3, 0.6)]
        for (site, weight), factor in zip(WEIGHTS.items(), np.exp(RNG.normal(0, 0.4, 12)), strict=True)
    }
    features = dataclasses.replace(
        features_of(tmp_path_factory.mktemp("features")), curves=DamageCurves(points)
    )
    pairs = pairs_of(features, random_architectures(SMALL, 60), noise=0.1)
    return {
        kind: Learnt(features, pairs, Predictor.fit(pairs, features.names, TARGETS, section_of(kind)))
        for kind in ("curves", "curves+xgboost")
    }


@pytest.fixture(params=KINDS)
def learnt(learnt_by: dict[str, Learnt], request: pytest.FixtureRequest) -> Learnt:
    return learnt_by[request.param]


@pytest.fixture
def trees(learnt_by: dict[str, Learnt]) -> Learnt:
    return learnt_by["xgboost"]


def forecast_of(learnt: Learnt, architectures: list[Architecture]) -> dict[str, Array]:
    return learnt.predictor.forecast(learnt.features.matrix(architectures))


def test_it_learns_a_known_law(learnt: Learnt):
    """R² on architectures that it never saw, without the noise that it was taught with."""
    unseen = random_architectures(SMALL, 150, seed=9)
    found = forecast_of(learnt, unseen)
    for target, truth in (
        ("log_ppl.wiki", [3 + damage(a) for a in unseen]),
        ("quiz.log_likelihood", [-1 - 0.5 * damage(a) for a in unseen]),
    ):
        residual = np.sum((np.array(truth) - found[target]) ** 2)
        assert 1 - residual / np.sum((np.array(truth) - np.mean(truth)) ** 2) > 0.8


def test_every_target_has_its_own_model(learnt: Learnt):
    assert list(learnt.predictor.models) == TARGETS
    found = forecast_of(learnt, random_architectures(SMALL, 5))
    assert [len(found[target]) for target in TARGETS] == [5, 5, 5]


def violations(predictor: Predictor, features: Features) -> int:
    """How many single small cuts of random architectures a predictor forecasts to help."""
    count = 0
    for architecture in random_architectures(SMALL, 20, seed=7):
        for layer in range(SMALL.layers):
            ladder = [architecture.to_json() for _ in range(9)]
            for rung, widths in enumerate(ladder):
                widths[layer][2] = 64 - 8 * rung
            forecasts = predictor.forecast(features.matrix([Architecture.from_json(w) for w in ladder]))
            count += int((np.diff(forecasts["log_ppl.wiki"]) < 0).sum())
            count += int((np.diff(forecasts["quiz.log_likelihood"]) > 0).sum())
    return count


def test_only_the_law_keeps_noise_from_being_learnt(trees: Learnt, monkeypatch: pytest.MonkeyPatch):
    """Without the law the same pairs teach that some cuts help; with it, none does."""
    names = trees.features.names
    noisy = pairs_of(trees.features, random_architectures(SMALL, 80), noise=1.0)
    lawful = Predictor.fit(noisy, names, TARGETS, SECTION)
    assert violations(lawful, trees.features) == 0
    monkeypatch.setattr(predictor_module, "metric_of", lambda t: dataclasses.replace(metric_of(t), law=0))
    lawless = Predictor.fit(noisy, names, TARGETS, SECTION)
    assert violations(lawless, trees.features) > 20


@settings(deadline=None, max_examples=80)
@given(kind=st.sampled_from(["xgboost", "additive"]), architecture=architectures_of(SMALL), data=st.data())
def test_a_deeper_cut_never_forecasts_better(
    learnt_by: dict[str, Learnt], kind: str, architecture: Architecture, data: st.DataObject
):
    """The law holds of the architectures, not of the features only, and although the pairs are noisy.

    Trees on top of the additive model are not held to it: they take back what it overstates.
    """
    widths = architecture.to_json()
    for _ in range(data.draw(st.integers(1, 3))):
        layer = data.draw(st.integers(0, SMALL.layers - 1))
        part = data.draw(st.integers(0, 2))
        widths[layer][part] = data.draw(st.integers(0, widths[layer][part]))
    found = forecast_of(learnt_by[kind], [architecture, Architecture.from_json(widths)])
    assert found["log_ppl.wiki"][1] >= found["log_ppl.wiki"][0] - 1e-12
    assert found["quiz.log_likelihood"][1] <= found["quiz.log_likelihood"][0] + 1e-12


def test_accuracy_is_free_of_the_law(trees: Learnt):
    """The taught accuracy rises and falls with the overall ratio, and the forecast follows."""
    ladder = [
        Architecture.from_json([[2, 3, c]] * 3 + [[g, 3, c]] * 3) for g in (2, 1, 0) for c in (64, 40, 12)
    ]
    found = forecast_of(trees, ladder)["quiz.accuracy"]
    steps = np.sign(np.diff(found))
    assert {1.0, -1.0} <= set(steps.tolist())


def test_what_is_saved_forecasts_the_same(learnt: Learnt, tmp_path: Path):
    learnt.predictor.save(tmp_path / "deep" / "predictor")
    back = Predictor.load(tmp_path / "deep" / "predictor")
    assert tuple(back.features) == tuple(learnt.features.names)
    unseen = learnt.features.matrix(random_architectures(SMALL, 40, seed=5))
    before, after = learnt.predictor.forecast(unseen), back.forecast(unseen)
    assert list(after) == TARGETS
    for target in TARGETS:
        assert (after[target] == before[target]).all()


def test_one_row_is_forecast_as_in_a_batch(learnt: Learnt):
    matrix = learnt.features.matrix(random_architectures(SMALL, 10))
    whole = learnt.predictor.forecast(matrix)
    for index, row in enumerate(matrix):
        alone = learnt.predictor.forecast(row[None])["log_ppl.wiki"][0]
        assert alone == pytest.approx(whole["log_ppl.wiki"][index], rel=1e-12)


def test_the_served_predictor_forecasts_the_same_from_a_frame(learnt: Learnt, tmp_path: Path):
    """What MLflow loads: the columns by name, in whatever order they come."""
    learnt.predictor.save(tmp_path)
    rows = learnt.pairs[learnt.features.names].head(20)
    found = pyfunc._load_pyfunc(str(tmp_path)).predict(rows[rows.columns[::-1]])
    assert list(found.columns) == TARGETS
    for target, ours in learnt.predictor.forecast(rows.to_numpy()).items():
        assert (found[target].to_numpy() == ours).all()


def test_the_parts_of_a_forecast_add_up(learnt_by: dict[str, Learnt]):
    rows = learnt_by["additive"].pairs[learnt_by["additive"].features.names].to_numpy()
    both = learnt_by["additive+xgboost"].predictor.models["log_ppl.wiki"]
    assert both.additive is not None
    assert both.trees is not None
    ours = both.additive.forecast(rows) + both.trees.predict(rows)
    assert both.forecast(rows) == pytest.approx(ours, rel=1e-6)
    alone = learnt_by["additive"].predictor.models["log_ppl.wiki"]
    assert both.additive.forecast(rows) == pytest.approx(alone.forecast(rows))


@settings(deadline=None, max_examples=20)
@given(architecture=architectures_of(SMALL), kind=st.sampled_from([*KINDS, "curves", "curves+xgboost"]))
def test_what_sites_add_is_the_whole_rise_of_the_forecast(
    learnt_by: dict[str, Learnt], curved: dict[str, Learnt], architecture: Architecture, kind: str
):
    found = (learnt_by | curved)[kind]
    weights = {"log_ppl.wiki": 1.0, "quiz.log_likelihood": 3.0}
    parts = found.predictor.contributions(found.features, architecture, weights)
    rows = found.features.matrix([SMALL.dense(), architecture])
    dense, cut = (
        objective_of({t: float(v[i]) for t, v in found.predictor.forecast(rows).items()}, weights)
        for i in (0, 1)
    )
    assert sum(sum(sites.values()) for sites in parts.values()) == pytest.approx(cut - dense, abs=1e-5)
    whole = [s for s in SMALL.sites() if not architecture.site_ratio(SMALL, s)]
    if len(whole) < 12:
        assert all(parts[part][site] == 0 for part in ("curve", "pairs") for site in whole)
    if kind in KINDS:
        assert not any(parts["curve"].values())
        assert not any(parts["pairs"].values())


def test_the_digest_names_what_was_fitted(learnt_by: dict[str, Learnt]):
    digests = {kind: found.predictor.digest for kind, found in learnt_by.items()}
    assert len(set(digests.values())) == 3
    pairs, names = learnt_by["additive"].pairs, learnt_by["additive"].features.names
    again = Predictor.fit(pairs, names, TARGETS, section_of("additive"))
    assert again.digest == digests["additive"]
    fewer = Predictor.fit(pairs.head(200), names, TARGETS, section_of("additive"))
    assert fewer.digest != digests["additive"]


def test_refits_are_the_same_to_the_byte(trees: Learnt, tmp_path: Path):
    again = Predictor.fit(trees.pairs, trees.features.names, TARGETS, SECTION)
    other = Predictor.fit(trees.pairs, trees.features.names, TARGETS, SECTION.model_copy(update={"seed": 1}))
    for name, predictor in (("first", trees.predictor), ("again", again), ("other", other)):
        predictor.save(tmp_path / name)
    files = sorted(p.name for p in (tmp_path / "first").iterdir())
    assert files == sorted([*(f"{target}.ubj" for target in TARGETS), "predictor.json"])
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    ubj = "log_ppl.wiki.ubj"
    assert (tmp_path / "first" / ubj).read_bytes() != (tmp_path / "other" / ubj).read_bytes()


def test_gains_sum_to_one_over_all_sites(learnt: Learnt):
    for target in TARGETS:
        rows = learnt.pairs[learnt.features.names].to_numpy()
        gains = learnt.predictor.gains(target, learnt.features, rows)
        assert set(gains) == {str(site) for site in SMALL.sites()}
        assert sum(gains.values()) == pytest.approx(1)
        assert min(gains.values()) >= 0


@pytest.mark.parametrize("site", [Site(2, Kind.MLP), Site(4, Kind.ATTENTION)], ids=str)
def test_gains_find_the_one_site_that_matters(learnt: Learnt, site: Site):
    architectures = random_architectures(SMALL, 150)
    pairs = learnt.pairs.head(150).copy()
    pairs["log_ppl.wiki"] = [3 + 2 * a.site_ratio(SMALL, site) for a in architectures]
    predictor = Predictor.fit(
        pairs,
        learnt.features.names,
        ["log_ppl.wiki"],
        section_of(learnt.predictor.kind),
    )
    gains = predictor.gains("log_ppl.wiki", learnt.features, pairs[learnt.features.names].to_numpy())
    assert max(gains, key=lambda name: gains[name]) == str(site)
    assert gains[str(site)] > 0.5


def test_gains_of_a_forecast_that_nothing_matters_to(learnt: Learnt):
    pairs = learnt.pairs.assign(**{"log_ppl.wiki": 3.0})
    predictor = Predictor.fit(
        pairs,
        learnt.features.names,
        ["log_ppl.wiki"],
        section_of(learnt.predictor.kind),
    )
    gains = predictor.gains("log_ppl.wiki", learnt.features, pairs[learnt.features.names].to_numpy())
    assert set(gains.values()) == {1 / 12}


def test_errors_by_hand():
    measured, forecast = np.array([1.0, 2.0, 3.0, 6.0]), np.array([1.0, 3.0, 2.0, 4.0])
    # residuals 0, -1, 1, 2; the mean of the measured is 3, its squares around it 4, 1, 0, 9
    found = errors(measured, forecast)
    assert found == pytest.approx({"r2": 1 - 6 / 14, "mae": 1.0, "rmse": 1.5**0.5, "spearman": 0.8})


def test_of_values_that_are_all_the_same_nothing_is_explained():
    """An accuracy that no cut changes: to forecast it exactly is no merit."""
    found = errors(np.full(4, 0.25), np.full(4, 0.25))
    assert found == {"r2": 0.0, "mae": 0.0, "rmse": 0.0, "spearman": 0.0}


def test_a_constant_forecast_ranks_nothing():
    found = errors(np.array([1.0, 2.0, 3.0]), np.full(3, 2.0))
    assert found == pytest.approx({"r2": 0.0, "mae": 2 / 3, "rmse": (2 / 3) ** 0.5, "spearman": 0.0})
    assert errors(np.full(3, 2.0), np.array([1.0, 2.0, 3.0]))["spearman"] == 0.0


def test_evaluation_speaks_of_the_rows_given(learnt: Learnt):
    rows = learnt.pairs.tail(60)
    found = evaluate(learnt.predictor, rows)
    assert list(found) == TARGETS
    forecast = learnt.predictor.forecast(rows[learnt.features.names].to_numpy())
    for target in TARGETS:
        assert found[target]["pairs"] == 60
        assert found[target]["scale"] == metric_of(target).unit
        assert found[target]["mae"] == pytest.approx(np.abs(rows[target] - forecast[target]).mean())


def test_a_missing_predictor_says_how_to_make_it(tmp_path: Path):
    with pytest.raises(InputError, match=r"predictor\.json is not there; run `dvc repro train-predictor`"):
        Predictor.load(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"nothing of the kind", b"{}"])
def test_a_missing_or_damaged_model_is_named(trees: Learnt, tmp_path: Path, content: bytes | None):
    trees.predictor.save(tmp_path)
    path = tmp_path / "quiz.accuracy.ubj"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"quiz\.accuracy\.ubj is .*; run `dvc repro train-predictor`"):
        Predictor.load(tmp_path)


def test_a_model_cut_short_is_named(trees: Learnt, tmp_path: Path):
    trees.predictor.save(tmp_path)
    path = tmp_path / "quiz.accuracy.ubj"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"quiz\.accuracy\.ubj is damaged"):
        Predictor.load(tmp_path)


@pytest.mark.parametrize("damage", ["features", "models"])
def test_a_predictor_file_that_lacks_a_key_is_named(trees: Learnt, tmp_path: Path, damage: str):
    trees.predictor.save(tmp_path)
    path = tmp_path / "predictor.json"
    document = json.loads(path.read_text())
    del document[damage]
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"predictor\.json is damaged .*run `dvc repro train-predictor`"):
        Predictor.load(tmp_path)
