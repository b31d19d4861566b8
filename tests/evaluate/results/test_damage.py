"""Damage curves: through their points, never falling, and what is made of them as features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.architecture import Architecture, Kind, Site
from stages.build_dataset.features import Features
from stages.evaluate.results.damage import FLOOR, DamageCurves, only_cut
from stages.files import InputError
from stages.sample import designs
from tests.small import COMMITTED, SMALL, architectures_of, random_architectures, write_scores

SECTION = COMMITTED.sample.model_copy(update={"single_site_ratios": [0.25, 0.5], "mlp_granularity": 4})
COSTS = np.random.default_rng(1).exponential(size=12)


def law(architecture: Architecture) -> dict[str, float]:
    """Sites' damages by the square of their ratios add up; of two texts, whose mean counts."""
    ratios = np.array([architecture.site_ratio(SMALL, site) for site in SMALL.sites()])
    damage = float(COSTS @ ratios**2)
    return {"log_ppl.a": 3 + 0.5 * damage, "log_ppl.b": 4 + 1.5 * damage}


def curves() -> DamageCurves:
    alone = [d.architecture for d in designs.single_site(SMALL, SECTION)]
    found = DamageCurves.of_pairs(SMALL, {a: law(a) for a in (SMALL.dense(), *alone)}, ["a", "b"])
    assert found is not None
    return found


@settings(deadline=None, max_examples=30)
@given(architectures_of(SMALL))
def test_a_square_law_is_read_back_from_two_points(architecture: Architecture):
    found = curves()
    for place, site in enumerate(SMALL.sites()):
        ratio = architecture.site_ratio(SMALL, site)
        assert found.damage(site, ratio) == pytest.approx(COSTS[place] * ratio**2, rel=1e-6, abs=1e-9)


POINTS = st.lists(
    st.tuples(st.floats(0.05, 1), st.floats(-0.1, 3)),
    min_size=1,
    max_size=5,
    unique_by=lambda p: round(p[0], 2),
)


@settings(deadline=None)
@given(POINTS, st.floats(0, 1), st.floats(0, 1))
def test_curves_never_fall_and_begin_at_zero(points: list[tuple[float, float]], a: float, b: float):
    site = Site(0, Kind.MLP)
    curve = DamageCurves({site: sorted(points)})
    low, high = sorted((a, b))
    assert curve.damage(site, 0) == 0
    assert 0 <= curve.damage(site, low) <= curve.damage(site, high) * (1 + 1e-9)


def test_a_curve_goes_through_its_rising_points_and_over_its_dips():
    site = Site(2, Kind.ATTENTION)
    curve = DamageCurves({site: [(0.2, 0.1), (0.4, 0.3), (0.6, 0.2), (0.8, 0.5)]})
    assert [round(curve.damage(site, r), 9) for r in (0.2, 0.4, 0.6, 0.8)] == [0.1, 0.3, 0.3, 0.5]
    gain = DamageCurves({site: [(0.5, -0.2)]})
    assert gain.damage(site, 0.5) == pytest.approx(FLOOR)
    assert gain.damage(site, 0.25) == pytest.approx(FLOOR / 4)


def test_a_site_without_a_curve_has_the_median_of_its_kind():
    points = {Site(i, Kind.MLP): [(0.5, cost)] for i, cost in enumerate((0.1, 0.2, 0.9))}
    curve = DamageCurves({**points, Site(0, Kind.ATTENTION): [(0.5, 7.0)]})
    assert curve.damage(Site(5, Kind.MLP), 0.5) == pytest.approx(0.2)
    assert curve.damage(Site(5, Kind.ATTENTION), 0.5) == pytest.approx(7.0)


def test_only_architectures_that_cut_one_site_make_curves():
    mixed = random_architectures(SMALL, 5)
    assert DamageCurves.of_pairs(SMALL, {a: law(a) for a in mixed}, ["a", "b"]) is None
    alone = designs.single_site(SMALL, SECTION)[0].architecture
    assert only_cut(SMALL, alone) is not None
    assert only_cut(SMALL, SMALL.dense()) is None
    assert only_cut(SMALL, mixed[0]) is None
    with pytest.raises(InputError, match="the dense model was not measured"):
        DamageCurves.of_pairs(SMALL, {alone: law(alone)}, ["a", "b"])


def test_what_is_written_is_read(tmp_path: Path):
    curves().write(tmp_path / "damage.json")
    assert DamageCurves.read(tmp_path / "damage.json") == curves()
    DamageCurves({}).write(tmp_path / "none.json")
    assert DamageCurves.read(tmp_path / "none.json") is None
    damaged = (tmp_path / "damage.json").read_text(encoding="utf-8").replace("mlp", "mpl", 1)
    (tmp_path / "damage.json").write_text(damaged, encoding="utf-8")
    with pytest.raises(InputError, match="is damaged"):
        DamageCurves.read(tmp_path / "damage.json")


def test_features_are_sums_of_damages(tmp_path: Path):
    path = tmp_path / "scores.safetensors"
    write_scores(path, SMALL)
    features = Features.of_model(SMALL, 2, path, curves())
    bands = [f"damage.{band}.{kind}" for band in ("00-01", "02-03", "04-05") for kind in Kind]
    sites = [f"damage.{site.layer:02d}.{site.kind}" for site in SMALL.sites()]
    assert features.names[-21:] == ["damage", "damage.attention", "damage.mlp", *bands, *sites]
    for architecture in random_architectures(SMALL, 4):
        each = [curves().damage(site, architecture.site_ratio(SMALL, site)) for site in SMALL.sites()]
        found = features.row(architecture)[-21:]
        of_bands = [each[i] + each[i + 2] for i in (0, 1, 4, 5, 8, 9)]
        assert found == pytest.approx([sum(each), sum(each[0::2]), sum(each[1::2]), *of_bands, *each])
    assert sum(features.shares("damage.mlp").values()) == pytest.approx(1)
    dearest = max(features.shares("damage").items(), key=lambda item: item[1])[0]
    assert dearest == list(SMALL.sites())[int(COSTS.argmax())]
    assert set(features.shares("damage.mlp")) == {s for s in SMALL.sites() if s.kind is Kind.MLP}
    assert features.sites_of("damage.03.mlp") == [Site(3, Kind.MLP)]
    assert features.sites_of("damage.02-03.mlp") == [Site(2, Kind.MLP), Site(3, Kind.MLP)]


@given(POINTS, POINTS)
@settings(deadline=None)
def test_what_is_measured_corrects_what_is_expected(
    expected: list[tuple[float, float]], measured: list[tuple[float, float]]
):
    """The corrected curve meets what was measured where the expected one has points, and keeps its shape."""
    site, other = Site(0, Kind.MLP), Site(1, Kind.MLP)
    rising = [
        (r, 0.01 + sum(abs(d) for _, d in sorted(expected)[: i + 1]))
        for i, (r, _) in enumerate(sorted(expected))
    ]
    curve = DamageCurves({site: rising, other: rising})
    found = curve.corrected({site: [(rising[0][0], 0.5)]})
    factor = 0.5 / rising[0][1]
    assert [d for _, d in found.points[site]] == pytest.approx([d * factor for _, d in rising])
    assert found.points[other] == rising
    new = Site(2, Kind.MLP)
    assert curve.corrected({new: sorted(measured)}).points[new] == sorted(measured)
    at_all = curve.corrected({site: [(r, d * (2 + i)) for i, (r, d) in enumerate(rising)]})
    assert [d for _, d in at_all.points[site]] == pytest.approx(
        [d * (2 + i) for i, (_, d) in enumerate(rising)]
    )


def test_single_sites_correct_the_expected_curves():
    flat = DamageCurves({site: [(0.25, 0.1), (0.5, 0.2)] for site in SMALL.sites()})
    alone = [d.architecture for d in designs.single_site(SMALL, SECTION)]
    found = DamageCurves.of_pairs(SMALL, {a: law(a) for a in (SMALL.dense(), *alone)}, ["a", "b"], flat)
    assert found is not None
    for place, site in enumerate(SMALL.sites()):
        ratio = next(a.site_ratio(SMALL, site) for a in alone if only_cut(SMALL, a) == site)
        assert found.damage(site, ratio) == pytest.approx(max(COSTS[place] * ratio**2, FLOOR), rel=0.01)
    assert DamageCurves.of_pairs(SMALL, {SMALL.dense(): law(SMALL.dense())}, ["a", "b"], flat) == flat


def test_a_key_tells_what_was_computed_from_something_else(tmp_path: Path):
    curves().write(tmp_path / "curvature.json", "one")
    assert DamageCurves.read(tmp_path / "curvature.json", "one") == curves()
    assert DamageCurves.read(tmp_path / "curvature.json", "two") is None
