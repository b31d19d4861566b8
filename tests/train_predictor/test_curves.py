"""Corrected curves: the process against its definition, and what it learns that a sum cannot know."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.files import InputError
from stages.train_predictor.curves import Curves
from stages.train_predictor.models import Roles, TargetModel
from tests.small import COMMITTED

SITES = 12


def damages_of(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).exponential(0.03, size=(count, SITES))


def law(damages: np.ndarray, seed: int = 7) -> np.ndarray:
    """Each site's damage is really another by a factor of its own."""
    factors = np.exp(np.random.default_rng(seed).normal(0, 0.5, SITES))
    return 3.2 + 1.1 * damages @ factors


def test_factors_of_sites_are_learned() -> None:
    known, new = damages_of(60, 1), damages_of(200, 2)
    curves, _ = Curves.fit(known, law(known))
    missed = np.sqrt(np.mean((curves.forecast(new) - law(new)) ** 2))
    line = np.polyfit(known.sum(1), law(known), 1)
    by_sum = np.sqrt(np.mean((np.polyval(line, new.sum(1)) - law(new)) ** 2))
    assert missed < 0.3 * by_sum


def test_what_is_left_over_is_each_pair_forecast_by_the_others() -> None:
    """The closed form against fits without the pair, under the same settings."""
    known = damages_of(15, 3)
    target = law(known) + np.random.default_rng(4).normal(0, 0.02, 15)
    curves, left_over = Curves.fit(known, target)
    assert isinstance(curves, Curves)
    covariance = np.array([[_covariance(curves, a, b) for b in known] for a in known])
    rest = target - curves.intercept - curves.slope * known.sum(1)
    # The weights solve (K + N) w = rest, which gives the noise N of each pair back.
    noise = np.diag((rest - covariance @ curves.weights) / curves.weights)
    for place in (0, 7, 14):
        others = np.arange(15) != place
        inner = np.linalg.solve((covariance + noise)[np.ix_(others, others)], rest[others])
        forecast = covariance[place, others] @ inner
        assert left_over[place] == pytest.approx(rest[place] - forecast, rel=1e-5, abs=1e-8)


def _covariance(curves: Curves, a: np.ndarray, b: np.ndarray) -> float:
    """The definition, site by site."""
    total = curves.spread**2 + (0.3 * curves.slope) ** 2 * a.sum() * b.sum()
    for x, y in zip(a, b, strict=True):
        alike = np.exp(-((np.log(x) - np.log(y)) ** 2) / (2 * curves.length**2))
        total += (curves.slope * curves.tau) ** 2 * x * y * alike
    return float(total)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.integers(2, 30))
def test_sites_add_up_to_the_forecast_and_a_file_holds_it(seed: int, count: int) -> None:
    known, new = damages_of(count, seed), damages_of(5, seed + 1)
    curves, left_over = Curves.fit(known, law(known))
    assert np.isfinite(left_over).all()
    assert Curves.from_json(curves.to_json()).forecast(new) == pytest.approx(curves.forecast(new))
    rest = curves.forecast(new) - curves.by_site(new).sum(1)
    assert rest == pytest.approx(np.full(5, rest[0]), abs=1e-6)


@pytest.mark.parametrize("target", [np.full(9, 2.5), np.random.default_rng(0).normal(size=9)])
def test_targets_that_follow_no_law_are_forecast_finitely(target: np.ndarray) -> None:
    known = np.vstack([np.zeros(SITES), damages_of(8, 5)])
    curves, left_over = Curves.fit(known, target)
    assert np.isfinite(curves.forecast(damages_of(4, 6))).all()
    assert np.isfinite(left_over).all()


def test_without_damages_of_sites_the_error_says_what_to_do() -> None:
    section = COMMITTED.train_predictor.model_copy(update={"model": "curves"})
    with pytest.raises(InputError, match="curvature_tokens"):
        TargetModel.fit(damages_of(9, 1), np.ones(9), 1, section)


def test_only_the_curves_see_the_damages_of_sites() -> None:
    names = ["ratio.00.mlp", "damage", "damage.00-01.mlp", "damage.00.mlp", "damage.01.attention"]
    roles = Roles.of(names)
    assert roles.damages.tolist() == [3, 4]
    assert roles.plain.tolist() == [0, 1, 2]
    assert roles.trusted.tolist() == [False, True, False, False, False]
