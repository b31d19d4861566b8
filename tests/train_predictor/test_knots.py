"""Curves of many pairs: they agree with the process itself, and cost what the number of pairs says."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.train_predictor import curves as exact
from stages.train_predictor import knots
from stages.train_predictor.curves import AnyCurves, Curves
from stages.train_predictor.knots import KnotCurves
from tests.train_predictor.test_curves import SITES, law

NOISE = 0.01


def pairs_of(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Damages of widths on a grid, some sites uncut, and what was measured of them with noise."""
    rng = np.random.default_rng(seed)
    ratios = rng.integers(0, 49, (count, SITES)) / 48 * rng.uniform(0.2, 1, (count, 1))
    powers = np.random.default_rng(5).uniform(1.2, 4, SITES)
    damages = 0.2 * ratios**powers
    return damages, law(damages) + damages[:, 1:].prod(axis=1) + rng.normal(0, NOISE, count)


def both(
    damages: np.ndarray, target: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[AnyCurves, np.ndarray]]:
    found = []
    for largest in (len(target), 0):
        monkeypatch.setattr(exact, "EXACT", largest)
        found.append(Curves.fit(damages, target))
    assert [type(curves) for curves, _ in found] == [Curves, KnotCurves]
    return found


@pytest.mark.parametrize("count", [30, 150, 500])
def test_forecasts_are_those_of_the_process(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far below the noise; and what is left over, which the variances of forecasts decide, as well."""
    (curves, left), (by_knots, left_by_knots) = both(*pairs_of(count, 1), monkeypatch)
    new, _ = pairs_of(300, 2)
    assert isinstance(curves, Curves)
    assert isinstance(by_knots, KnotCurves)
    assert by_knots.length == curves.length
    assert by_knots.forecast(new) == pytest.approx(curves.forecast(new), abs=0.03 * NOISE)
    assert left_by_knots == pytest.approx(left, abs=0.03 * NOISE)
    assert by_knots.by_site(new) == pytest.approx(curves.by_site(new), abs=0.03 * NOISE)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.integers(2, 40))
def test_sites_add_up_and_a_file_holds_them(seed: int, count: int) -> None:
    damages, target = pairs_of(count, seed)
    prior = knots.Prior(float(target.mean()), 1.0, 10.0, 0.3, 0.02)
    curves, left_over = KnotCurves.fit(damages, target, prior, [0.25], [0.7], [(0.05, 0.3)])
    assert np.isfinite(left_over).all()
    again = Curves.from_json(curves.to_json())
    assert isinstance(again, KnotCurves)
    assert again.forecast(damages) == pytest.approx(curves.forecast(damages))
    assert curves.intercept + curves.by_site(damages).sum(axis=1) == pytest.approx(curves.forecast(damages))


def test_knots_stand_for_all_damages_of_a_site() -> None:
    """The features' products are the covariance, at damages that are no knots too."""
    damages = np.random.default_rng(0).exponential(0.03, (2000, 1))
    basis = knots._Basis.of(damages, 0.7)
    new = np.random.default_rng(1).uniform(0, damages.max(), (200, 1))
    features = basis.features(new)[:, 2:]
    logarithms = np.log(new)
    truth = new * new.T * np.exp(-((logarithms - logarithms.T) ** 2) / (2 * 0.7**2))
    assert features @ features.T == pytest.approx(truth, abs=10 * knots.TOLERANCE * damages.max() ** 2)
    assert len(basis.knots[0]) < 20


@pytest.mark.parametrize("damages", [np.zeros((20, 3)), np.random.default_rng(0).random((20, 3)) * [0, 1, 0]])
def test_sites_that_are_never_cut_have_no_knots(damages: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "EXACT", 0)
    curves, left_over = Curves.fit(damages, np.random.default_rng(1).normal(size=20))
    assert np.isfinite(curves.forecast(damages)).all()
    assert np.isfinite(left_over).all()


def test_memory_grows_no_faster_than_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Far less than the process needs: 8,000² pairs alone would take half a gigabyte."""
    one_each = {"TAUS": (0.25,), "LENGTHS": (0.7,), "RELATIVE_NOISES": (0.05,), "NOISES": (0.3,)}
    for name, one in one_each.items():
        monkeypatch.setattr(exact, name, one)
    peaks = []
    for count in (2000, 8000):
        damages, target = pairs_of(count, 3)
        tracemalloc.start()
        Curves.fit(damages, target)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 5 * peaks[0]
    assert peaks[1] < 64e6
