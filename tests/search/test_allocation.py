"""The cheapest cuts: least damage at a ratio, and what prices do to them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.architecture import Site
from stages.sample.space import Space
from stages.search.allocation import Allocation, cheapest
from tests.small import SMALL

SITES = list(SMALL.sites())
SPACE = Space(SMALL, 4, dict.fromkeys(SITES, (0.0, 1.0)))
HEIGHTS = dict(zip(SITES, np.random.default_rng(2).exponential(size=len(SITES)), strict=True))


def damage(site: Site, ratio: float) -> float:
    return float(HEIGHTS[site] * ratio**2)


def removed(wishes: dict[Site, float], space: Space = SPACE) -> float:
    return sum(r * space.weights[s] for s, r in wishes.items()) / SMALL.decoder_parameters


@settings(deadline=None, max_examples=30)
@given(st.floats(0, 1), st.lists(st.floats(-2, 2), min_size=len(SITES), max_size=len(SITES)))
def test_the_overall_ratio_is_met_at_any_prices(ratio: float, logarithms: list[float]) -> None:
    prices = {site: math.exp(value) for site, value in zip(SITES, logarithms, strict=True)}
    assert removed(Allocation(SPACE, damage).cheapest(ratio, prices)) == pytest.approx(ratio, abs=1e-9)


def test_no_choice_of_widths_that_removes_as_much_is_cheaper() -> None:
    """Against every choice, in a space of three sites."""
    three = Space(SMALL, 8, dict.fromkeys(SITES[:3], (0.0, 1.0)))
    wishes = cheapest(three, damage, 0.15)
    total = sum(damage(site, ratio) for site, ratio in wishes.items())
    for choice in itertools.product(*(three.allowed[site] for site in SITES[:3])):
        chosen = {site: option.ratio for site, option in zip(SITES[:3], choice, strict=True)}
        if removed(chosen, three) >= removed(wishes, three):
            assert sum(damage(site, ratio) for site, ratio in chosen.items()) >= total - 1e-9


def test_a_dearer_site_is_cut_less_and_equal_prices_change_nothing() -> None:
    allocation = Allocation(SPACE, damage)
    plain = allocation.cheapest(0.3)
    assert allocation.cheapest(0.3, dict.fromkeys(SITES, 5.0)) == plain
    most = max(plain, key=lambda site: plain[site])
    assert allocation.cheapest(0.3, {most: 20.0})[most] < plain[most]
