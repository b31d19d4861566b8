"""Narrowing: classes and intervals by the rule, a file that people can read, an unreachable budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.architecture import Kind, Site
from stages.config.params import Narrowing
from stages.files import InputError, read_json
from stages.sample.space import prunable_sites
from stages.search import narrowed_space, narrowing
from stages.search.narrowed_space import NarrowedSite
from stages.train_predictor.predictor import Predictor
from tests.small import COMMITTED, SMALL, features_of, random_architectures

SECTION = Narrowing(
    by="importance",
    sensitive=0.25,
    sensitive_ratios=[0.0, 0.3],
    insensitive=0.5,
    insensitive_ratios=[0.2, 0.7],
    other_ratios=[0.1, 0.5],
)
PRUNABLE = prunable_sites(SMALL, 1, 1)  # layers 1 to 4, eight sites
SITES = [str(site) for site in SMALL.sites()]
IMPORTANCE = {
    # exempt layers matter most, and that must not matter
    **dict.fromkeys(SITES, 9.0),
    "1.attention": 0.30,
    "1.mlp": 0.01,
    "2.attention": 0.02,
    "2.mlp": 0.25,
    "3.attention": 0.05,
    "3.mlp": 0.03,
    "4.attention": 0.04,
    "4.mlp": 0.20,
}

TRAIN = COMMITTED.train_predictor.model_copy(
    update={"model": "additive+xgboost", "trees": 400, "learning_rate": 0.05}
)


def narrowed(importance: dict[str, float] = IMPORTANCE, section: Narrowing = SECTION) -> list[NarrowedSite]:
    return narrowing.narrow(SMALL, PRUNABLE, importance, section)


def test_classes_and_intervals_follow_the_rule():
    """Of eight sites the two that matter most are limited, the four that matter least are opened."""
    found = {str(n.site): (n.label, n.interval) for n in narrowed()}
    assert found == {
        **dict.fromkeys(["0.attention", "0.mlp", "5.attention", "5.mlp"], ("exempt", (0.0, 0.0))),
        **dict.fromkeys(["1.attention", "2.mlp"], ("sensitive", (0.0, 0.3))),
        **dict.fromkeys(["4.mlp", "3.attention"], ("other", (0.1, 0.5))),
        **dict.fromkeys(["1.mlp", "2.attention", "3.mlp", "4.attention"], ("insensitive", (0.2, 0.7))),
    }
    assert [n.site for n in narrowed()] == list(SMALL.sites())
    assert {str(n.site): n.importance for n in narrowed()} == IMPORTANCE


def test_ties_go_to_the_earlier_layer():
    found = narrowed(dict.fromkeys(SITES, 0.1))
    assert [str(n.site) for n in found if n.label == "sensitive"] == ["1.attention", "1.mlp"]


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(st.floats(0, 1), min_size=12, max_size=12),
    sensitive=st.integers(0, 10),
    share=st.integers(0, 10),
)
def test_no_limited_site_matters_less_than_an_opened_one(values: list[float], sensitive: int, share: int):
    insensitive = min(share, 10 - sensitive)
    section = SECTION.model_copy(update={"sensitive": sensitive / 10, "insensitive": insensitive / 10})
    found = narrowed(dict(zip(SITES, values, strict=True)), section)
    by_class = {
        label: [n.importance for n in found if n.label == label]
        for label in ("sensitive", "other", "insensitive", "exempt")
    }
    assert len(by_class["exempt"]) == 4
    assert abs(len(by_class["sensitive"]) - 8 * sensitive / 10) <= 0.5
    assert abs(len(by_class["insensitive"]) - 8 * insensitive / 10) <= 1  # rounded, and never limited too
    falling = by_class["sensitive"], by_class["other"], by_class["insensitive"]
    for upper, lower in ((0, 1), (1, 2), (0, 2)):
        if falling[upper] and falling[lower]:
            assert min(falling[upper]) >= max(falling[lower])


def test_the_space_holds_the_intervals_and_leaves_the_rest_dense():
    space = narrowing.space_of(SMALL, 4, narrowed())
    assert set(space.limits) == set(PRUNABLE)
    assert space.limits[Site(1, Kind.ATTENTION)] == (0.0, 0.3)
    for site, options in space.allowed.items():
        low, high = space.limits[site]
        inside = [low - 1e-9 <= o.ratio <= high + 1e-9 for o in options]
        assert all(inside) or len(options) == 1


def test_the_file_is_complete_and_has_a_line_a_site(tmp_path: Path):
    found = narrowed()
    space = narrowing.space_of(SMALL, 8, found)
    path = tmp_path / "narrowed_space.json"
    narrowed_space.write(path, found, space, "damage")
    document = read_json(path, narrowed_space.SCHEMA, narrowed_space.VERSION)
    assert document["summary"]["ranked_by"] == "damage"
    assert document["summary"]["overall_ratio_reachable"] == pytest.approx(space.reachable(), abs=1e-4)
    rows = {row["site"]: row for row in document["sites"]}
    assert list(rows) == SITES
    for n in found:
        row = rows[str(n.site)]
        assert (row["class"], row["ratios"]) == (n.label, list(n.interval))
        assert row["importance"] == pytest.approx(n.importance)
    # of 64 channels in steps of 8 (an MLP's norm aside): 0.2 … 0.7 removes 13 … 44, 0 … 0.3 at most 19
    assert rows["1.mlp"]["widths"] == [48, 40, 32, 24]
    assert rows["2.mlp"]["widths"] == [64, 56, 48]
    assert rows["1.attention"]["widths"] == [[2, 3], [2, 2]]
    assert rows["0.mlp"]["widths"] == rows["0.attention"]["widths"] == []
    read = narrowed_space.read(path)
    assert read.ranked_by == "damage"
    assert [(n.site, n.label, n.interval) for n in read.sites] == [
        (n.site, n.label, n.interval) for n in found
    ]
    assert [n.importance for n in read.sites] == pytest.approx([n.importance for n in found], abs=1e-6)
    assert [list(n.widths) for n in read.sites] == [
        [option.width for option in space.allowed.get(n.site, [])] for n in found
    ]
    text = path.read_text()
    for row in document["sites"]:
        assert sum(json.dumps(row) in line for line in text.splitlines()) == 1


@pytest.mark.parametrize("ratio", [0.01, 0.6])
def test_an_unreachable_budget_tells_the_interval(ratio: float):
    space = narrowing.space_of(SMALL, 4, narrowed())
    low, high = space.reachable()
    assert 0.05 < low < 0.3 < high < 0.5
    narrowing.check_reachable(space, 0.3, "budget.overall_ratio")
    with pytest.raises(InputError) as caught:
        narrowing.check_reachable(space, ratio, "search.front")
    message = str(caught.value)
    assert f"search.front is {ratio:g}; the narrowed space reaches {low:.4f} to {high:.4f}" in message
    assert "search.narrowing" in message


@pytest.mark.parametrize("by", ["importance", "damage"])
def test_what_costs_most_is_sensitive(tmp_path: Path, by: Literal["importance", "damage"]):
    """A law in which the second MLP costs ten times as much as any other site."""
    features = features_of(tmp_path)
    architectures = random_architectures(SMALL, 200)
    costs = {site: 10.0 if str(site) == "1.mlp" else 0.5 for site in SMALL.sites()}
    pairs = pd.DataFrame(features.matrix(architectures), columns=features.names)
    pairs["log_ppl.a"] = [sum(c * a.site_ratio(SMALL, s) for s, c in costs.items()) for a in architectures]
    predictor = Predictor.fit(pairs, features.names, ["log_ppl.a"], TRAIN)
    found = narrowing.importances(by, predictor, features, pairs, {"log_ppl.a": 1.0})
    assert set(found) == set(SITES)
    assert sum(found.values()) == pytest.approx(1)
    assert max(found, key=lambda site: found[site]) == "1.mlp"
