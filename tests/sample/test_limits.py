"""Limits of bytes and milliseconds: met from any wish, nearly used, and refused where nothing meets them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.architecture import Architecture, Kind, LayerWidth, ModelShape, Site
from stages.files import InputError
from stages.sample import designs
from stages.sample.latency import LatencyTable
from stages.sample.limits import Limit, Limited, limits_of
from stages.sample.space import Space
from tests.small import COMMITTED, SMALL, SMOLLM2, budget_of, shapes

FAST = settings(deadline=None, max_examples=60)
GRID = st.integers(0, 20).map(lambda i: i / 20)
TOLERANCE = 0.01


@dataclass(frozen=True)
class Law:
    """A cost that rises with the width, of attention as its matrices do."""

    constant: float
    head: float
    channel: float
    there: float

    def __call__(self, kind: Kind, width: tuple[int, ...]) -> float:
        if kind is Kind.ATTENTION:
            return self.there + self.head * width[0] * (width[1] + 1)
        return self.there + self.channel * width[0]

    def of(self, architecture: Architecture) -> float:
        total = self.constant
        for width in architecture.widths:
            total += self(Kind.ATTENTION, width[:2]) if width.has_attention else 0
            total += self(Kind.MLP, width[2:]) if width.has_mlp else 0
        return total


POSITIVE = st.floats(0.01, 10)
LAWS = st.builds(Law, st.floats(0, 50), POSITIVE, POSITIVE, st.floats(0, 5))


@dataclass(frozen=True)
class Case:
    space: Space
    laws: list[Law]
    wishes: dict[Site, float]
    shares: list[float]
    """How far between the least and the most that the space takes each limit lies."""

    @property
    def ends(self) -> tuple[Architecture, Architecture]:
        """The smallest and the widest architecture of the space."""
        rows = self.space.allowed.items()
        return tuple(self.space.architecture({s: w[i] for s, w in rows}) for i in (-1, 0))  # type: ignore[return-value]

    def limited(self, scale: float = 1.0) -> Limited:
        small, wide = self.ends
        limits = []
        for law, share in zip(self.laws, self.shares, strict=True):
            most = law.of(small) + share * (law.of(wide) - law.of(small))
            limits.append(Limit("prefill_ms", scale * most, law.constant, law))
        return Limited(self.space, limits, TOLERANCE)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    shape = draw(shapes(min_layers=2, unlike=True))
    sites = draw(st.lists(st.sampled_from(list(shape.sites())), min_size=1, unique=True))
    interval = st.tuples(GRID, GRID).map(lambda pair: (min(pair), max(pair)))
    space = Space(shape, draw(st.integers(1, 16)), {site: draw(interval) for site in sites})
    laws = draw(st.lists(LAWS, min_size=1, max_size=3))
    shares = [draw(st.floats(0, 1)) for _ in laws]
    return Case(space, laws, {site: draw(GRID) for site in sites}, shares)


@FAST
@given(case=cases())
def test_projection_meets_every_limit_inside_the_space(case: Case):
    limited = case.limited()
    found = limited.project(case.wishes)
    for law, limit in zip(case.laws, limited.limits, strict=True):
        assert law.of(found) <= limit.most * (1 + 1e-8)
    for site in case.space.shape.sites():
        width = found.widths[site.layer].of(site.kind)
        offered = {o.width for o in case.space.allowed.get(site, [])}
        assert width in (offered or {case.space.shape.width(site)})


def a_step_from(case: Case, found: Architecture, step: int) -> list[Architecture]:
    """Every architecture of the space in which one site is that many widths narrower, or wider if < 0."""
    result = []
    for site, options in case.space.allowed.items():
        widths = [o.width for o in options]
        index = widths.index(found.widths[site.layer].of(site.kind)) + step
        if 0 <= index < len(widths):
            layers = [list(width) for width in found.widths]
            layers[site.layer][slice(2) if site.kind is Kind.ATTENTION else slice(2, 3)] = widths[index]
            result.append(Architecture(tuple(LayerWidth(*layer) for layer in layers)))
    return result


@FAST
@given(case=cases())
def test_little_of_the_tightest_limit_stays_unused(case: Case):
    """Or no site could be one width wider."""
    limited = case.limited()
    found = limited.project(case.wishes)
    used = [law.of(found) / max(li.most, 1e-12) for law, li in zip(case.laws, limited.limits, strict=True)]
    if max(used) < 1 - TOLERANCE - 1e-6:
        for wider in a_step_from(case, found, -1):
            # Of widths that cost no less, only the wider is offered.
            assert not all(limit.allows(wider) for limit in limited.limits) or any(
                law.of(wider) <= law.of(found) for law in case.laws
            )


@FAST
@given(case=cases(), scale=st.floats(1, 3))
def test_more_budget_is_never_infeasible(case: Case, scale: float):
    tight = case.limited()
    tight.project(case.wishes)
    case.limited(scale).project(case.wishes)


@FAST
@given(case=cases())
def test_a_baseline_takes_just_more_than_a_limit_allows(case: Case):
    """It is the next step, or the whole of the space where that meets the limits."""
    limited = case.limited()
    found = limited.project(case.wishes, at_least=False)
    if all(limit.allows(found) for limit in limited.limits):
        assert all(law.of(found) == pytest.approx(law.of(case.ends[1])) for law in case.laws)
        return
    # Two widths may cost the same; of them only the wider is offered.
    narrower = a_step_from(case, found, 1) + a_step_from(case, found, 2)
    assert any(all(limit.allows(n) for limit in limited.limits) for n in narrower)


@FAST
@given(case=cases(), data=st.data())
def test_below_the_smallest_reachable_the_error_names_what_is(case: Case, data: st.DataObject):
    limited = case.limited()
    place = data.draw(st.integers(0, len(case.laws) - 1))
    least = case.laws[place].of(case.ends[0])
    if least < 1e-3:
        return
    limits = list(limited.limits)
    limits[place] = replace(limits[place], most=least * 0.9)
    with pytest.raises(InputError, match=r"budget\.prefill_ms is .*; the smallest architecture of") as told:
        Limited(case.space, limits, TOLERANCE).project(case.wishes)
    (named,) = re.findall(r"takes ([0-9.,e+-]+), the dense", str(told.value))
    limits[place] = replace(limits[place], most=float(named.replace(",", "")))
    assert least * (1 - 1e-9) <= limits[place].most <= least * 1.0011
    Limited(case.space, limits, TOLERANCE).project(case.wishes)


@FAST
@given(shape=shapes(min_layers=2, unlike=True), seed=st.integers(0, 999), share=st.floats(0.3, 1), wish=GRID)
def test_limits_are_met_even_where_narrower_takes_longer(
    shape: ModelShape, seed: int, share: float, wish: float
):
    """Kernels like some widths better than others: a table need not rise with the width."""

    def cost(kind: Kind, width: tuple[int, ...]) -> float:
        return 1 + hash((seed, kind.value == "mlp", width)) % 7

    space = Space(shape, 4, dict.fromkeys(shape.sites(), (0.0, 0.8)))
    limit = Limit("decode_ms", 0.0, 3.0, cost)
    limit = replace(limit, most=share * limit.of(shape.dense()))
    limited = Limited(space, [limit], TOLERANCE)
    try:
        found = limited.project(dict.fromkeys(shape.sites(), wish))
    except InputError:
        return
    assert limit.of(found) <= limit.most * (1 + 1e-8)


TABLE = LatencyTable(
    {},
    {"prefill_ms": 10.0, "decode_ms": 1.0},
    {
        Kind.ATTENTION: {
            (g, h): {"prefill_ms": 2.0 * g * h, "decode_ms": 0.1 * g} for g in (1, 3) for h in (1, 3)
        },
        Kind.MLP: {(c,): {"prefill_ms": c / 64, "decode_ms": c / 2048} for c in (0, 512, 1536)},
    },
)


def test_the_limits_of_a_budget():
    budget = budget_of(overall_ratio=0.2, size_bytes=2 * 100_000_000, prefill_ms=900.0, dtype="bfloat16")
    ratio, size, prefill = limits_of(SMOLLM2, budget, TABLE)
    assert [limit.name for limit in (ratio, size, prefill)] == ["overall_ratio", "size_bytes", "prefill_ms"]
    dense = SMOLLM2.dense()
    half = Space(SMOLLM2, 32, {}).from_ratios(dict.fromkeys(SMOLLM2.sites(), 0.5))
    assert ratio.most == pytest.approx(0.8 * SMOLLM2.decoder_parameters)
    assert ratio.of(half) == half.kept_parameters(SMOLLM2)
    assert size.of(dense) == 2 * SMOLLM2.total_parameters
    assert size.of(half) == 2 * (
        SMOLLM2.total_parameters - SMOLLM2.decoder_parameters + half.kept_parameters(SMOLLM2)
    )
    assert prefill.of(dense) == pytest.approx(10 + 30 * (18 + 24))
    assert prefill.most == 900


def test_a_ratio_alone_is_no_limit_and_milliseconds_need_a_table():
    assert limits_of(SMOLLM2, budget_of(), None) == []
    with pytest.raises(ValueError, match="no latency table"):
        limits_of(SMOLLM2, budget_of(decode_ms=1.0), None)


def test_dense_within_every_limit_is_refused():
    budget = budget_of(overall_ratio=None, prefill_ms=1e6, decode_ms=1e6)
    with pytest.raises(
        InputError, match=r"the dense model is within every limit.*prefill_ms 1,270, decode_ms"
    ):
        designs.check_budget(SMOLLM2, COMMITTED.sample, budget, limits_of(SMOLLM2, budget, TABLE))


def test_a_limit_that_the_designs_cannot_reach_is_told_before_anything_is_measured():
    budget = budget_of(overall_ratio=None, size_bytes=100_000_000)
    with pytest.raises(InputError, match=r"budget\.size_bytes is 1e\+08; .* of the 24 of 30 layers that "):
        designs.check_budget(SMOLLM2, COMMITTED.sample, budget, limits_of(SMOLLM2, budget, None))


def test_baselines_of_a_limit_in_milliseconds():
    """Both take a little more than the limit allows, and are even as their names say."""
    budget = budget_of(overall_ratio=None, prefill_ms=1000.0)
    limits = limits_of(SMOLLM2, budget, TABLE)
    dense, uniform, simple = (
        d.architecture for d in designs.baselines(SMOLLM2, COMMITTED.sample, budget, limits)
    )
    assert dense == SMOLLM2.dense()
    for architecture in (uniform, simple):
        assert 1000 < limits[0].of(architecture) < 1008
    assert {width[:2] for width in simple.widths} == {(3, 3)}
    channels = [width.channels for width in simple.widths]
    assert max(channels) - min(channels) <= 32
    assert uniform.widths[:3] == uniform.widths[-3:] == dense.widths[:3]


def test_an_even_cut_by_parameters_is_what_the_ratio_gives():
    """The same budget said in bytes: SMALL's simple baselines are a step apart at most."""
    sites = [site for site in SMALL.sites() if site.kind is Kind.MLP]
    space = Space(SMALL, 4, dict.fromkeys(sites, (0.0, 1.0)))
    by_ratio = space.project(dict.fromkeys(sites, 0.2), 0.2, 0.02, at_least=True)
    most = 4 * (SMALL.total_parameters - round(0.2 * SMALL.decoder_parameters))
    limits = limits_of(SMALL, budget_of(overall_ratio=None, size_bytes=most), None)
    by_bytes = Limited(space, limits, 0.005).project(dict.fromkeys(sites, 0.2))
    assert by_bytes.overall_ratio(SMALL) >= 0.2 - 1e-6
    assert abs(by_bytes.overall_ratio(SMALL) - by_ratio.overall_ratio(SMALL)) < 0.02
