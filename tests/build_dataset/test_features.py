"""Features: against units counted one by one, and their monotone law."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.architecture import Architecture, Kind, ModelShape, Site
from stages.build_dataset.features import Features
from stages.evaluate.results.scores import UnitScores
from stages.files import InputError
from tests.small import SMALL, architectures_of, features_of, random_architectures, write_scores

TWO = ModelShape("llama", 2, 6, 2, 2, 3, 4, 10, True)
SCORES = {
    # attention, layer 0: group 1 is the better (1 + 5 + 9 = 15 to 2 + 3 + 4 = 9), its head 1 first
    "groups": [[2, 1], [4, 4]],
    "heads": [[[3, 4], [5, 9]], [[1, 1], [0, 3]]],
    "channels": [[1, 7, 2, 4], [3, 3, 3, 1]],
}
NARROW = Architecture.from_json([[1, 1, 1], [2, 1, 3]])


def two(folder: Path, band: int = 1) -> Features:
    path = folder / "scores.safetensors"
    UnitScores.of(**SCORES).save(path, "key")
    return Features.of_model(TWO, band, path)


def test_features_by_hand(tmp_path: Path):
    features = two(tmp_path, band=2)
    found = dict(zip(features.names, features.row(NARROW), strict=True))
    # parameters of attention (g, h): 6·(2·3·g·h + 2·3·g) + 6; of MLP c: 3·6·c + 6
    dense_attention, dense_mlp = 222, 78
    attention = [1 - 78 / dense_attention, 1 - 150 / dense_attention]
    mlp = [1 - 24 / dense_mlp, 1 - 60 / dense_mlp]
    assert found == pytest.approx(
        {
            "ratio.00.attention": attention[0],
            "ratio.00.mlp": mlp[0],
            "ratio.01.attention": attention[1],
            "ratio.01.mlp": mlp[1],
            "band.00-01.attention": sum(attention) / 2,
            "band.00-01.mlp": sum(mlp) / 2,
            "ratio.attention": sum(attention) / 2,
            "ratio.mlp": sum(mlp) / 2,
            # kept: layer 0 group 1 with head 1: 1 + 9; layer 1 both groups, best head of each: 8 + 3 + 1
            "mass.attention": 1 - (10 + 12) / 37,
            "mass.mlp": 1 - (7 + 9) / 24,
            "overall_ratio": 1 - (78 + 24 + 150 + 60) / 600,
        }
    )


def mass_by_units(scores: dict[str, np.ndarray], architecture: Architecture) -> tuple[float, float]:
    """Removed shares of importance, unit by unit: the best groups keep their best heads."""
    kept_attention = kept_mlp = 0.0
    for layer, (groups, heads, channels) in enumerate(architecture.widths):
        own = [[float(s) for s in row] for row in scores["heads"][layer]]
        of_group = [float(scores["groups"][layer][g]) + sum(own[g]) for g in range(len(own))]
        best = sorted(range(len(own)), key=lambda g, t=of_group: -t[g])[:groups]  # type: ignore[misc]
        if heads:
            for g in best:
                kept_attention += float(scores["groups"][layer][g]) + sum(
                    sorted(own[g], reverse=True)[:heads]
                )
        kept_mlp += sum(sorted((float(s) for s in scores["channels"][layer]), reverse=True)[:channels])
    all_attention = float(scores["groups"].sum() + scores["heads"].sum())
    return 1 - kept_attention / all_attention, 1 - kept_mlp / float(scores["channels"].sum())


def test_mass_by_units(tmp_path: Path):
    path = tmp_path / "importance.safetensors"
    scores = write_scores(path, SMALL, seed=3)
    features = Features.of_model(SMALL, 2, path)
    for architecture in random_architectures(SMALL, 30):
        row = dict(zip(features.names, features.row(architecture), strict=True))
        attention, mlp = mass_by_units(scores, architecture)
        assert row["mass.attention"] == pytest.approx(attention, abs=1e-5)
        assert row["mass.mlp"] == pytest.approx(mlp, abs=1e-5)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    return features_of(tmp_path_factory.mktemp("features"), SMALL, band=4)


@settings(deadline=None, max_examples=60)
@given(architecture=architectures_of(SMALL), data=st.data())
def test_every_feature_grows_when_a_site_is_cut_further(
    features: Features, architecture: Architecture, data: st.DataObject
):
    widths = architecture.to_json()
    layer = data.draw(st.integers(0, SMALL.layers - 1))
    part = data.draw(st.integers(0, 2))
    widths[layer][part] = data.draw(st.integers(0, widths[layer][part]))
    before, after = features.row(architecture), features.row(Architecture.from_json(widths))
    assert (after >= before - 1e-12).all()
    for row in (before, after):
        assert (row >= -1e-12).all()
        assert (row <= 1 + 1e-12).all()


def test_the_ends_are_zero_and_one(features: Features):
    dropped = Architecture.from_json([[0, 0, 0]] * SMALL.layers)
    assert features.row(SMALL.dense()) == pytest.approx(np.zeros(len(features.names)), abs=1e-12)
    assert features.row(dropped) == pytest.approx(np.ones(len(features.names)))


def test_a_site_moves_the_features_that_speak_of_it_and_no_others(features: Features):
    for site in SMALL.sites():
        widths = SMALL.dense().to_json()
        widths[site.layer][0 if site.kind is Kind.ATTENTION else 2] -= 1
        moved = features.row(Architecture.from_json(widths)) > 1e-9
        speaks = [site in features.sites_of(name) for name in features.names]
        assert moved.tolist() == speaks


def test_sites_of(features: Features):
    assert features.sites_of("ratio.03.mlp") == [Site(3, Kind.MLP)]
    assert features.sites_of("band.04-05.attention") == [Site(4, Kind.ATTENTION), Site(5, Kind.ATTENTION)]
    assert features.sites_of("ratio.mlp") == [Site(layer, Kind.MLP) for layer in range(6)]
    assert features.sites_of("mass.attention") == [Site(layer, Kind.ATTENTION) for layer in range(6)]
    assert set(features.sites_of("overall_ratio")) == set(SMALL.sites())
    assert len(set(features.names)) == len(features.names)


def test_matrix_is_the_rows(features: Features):
    architectures = random_architectures(SMALL, 5)
    matrix = features.matrix(architectures)
    assert matrix.shape == (5, len(features.names))
    assert (matrix == [features.row(a) for a in architectures]).all()


def test_missing_damaged_and_foreign_scores(tmp_path: Path):
    path = tmp_path / "importance.safetensors"
    with pytest.raises(InputError, match=r"importance\.safetensors is not there; run `dvc repro evaluate`"):
        Features.of_model(SMALL, 2, path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="is damaged"):
        Features.of_model(SMALL, 2, path)
    write_scores(path, TWO)
    with pytest.raises(InputError, match="belongs to another model"):
        Features.of_model(SMALL, 2, path)
