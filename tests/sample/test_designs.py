"""The designs: counts, seeds, shared draws, exempt layers; the baselines; the file they pass in."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.architecture import Architecture, Kind, LayerWidth, ModelShape, Site
from stages.config.params import ModelSection, Sample
from stages.families import describe
from stages.families.family import usual_settings
from stages.files import InputError, read_json, write_json
from stages.sample import designs, stage
from stages.sample.designs import Designed
from stages.sample.limits import Limit
from tests.small import COMMITTED, SMOLLM2, architectures_of, budget_of

SHAPE = ModelShape("llama", 12, 24, 2, 3, 4, 64, 100, tied_embeddings=False)
BUDGET = budget_of(overall_ratio=0.2, tolerance=0.02)


def sample(**changes: Any) -> Sample:
    ours = {
        "seed": 0,
        "first_layers_kept": 2,
        "last_layers_kept": 1,
        "mlp_granularity": 4,
        "ratios": [0.1, 0.2, 0.3, 0.4, 0.5],
        "bundle": 4,
        "bundled": 30,
        "free": 12,
        "single_site_ratios": [],
        "spread": 0,
        "spread_overall_ratios": [0.1, 0.3],
        "spread_site_ratios": [0.0, 0.5],
    }
    return COMMITTED.sample.model_copy(update=ours | changes)


def of_design(made: list[Designed], design: str) -> list[Architecture]:
    return [d.architecture for d in made if d.design == design]


def test_the_paper_design_has_its_counts_and_no_architecture_twice():
    made = designs.paper(SHAPE, sample())
    assert [d.design for d in made] == ["bundled"] * 30 + ["free"] * 12
    assert len({d.architecture for d in made}) == 42
    assert len({d.architecture.id for d in made}) == 42


def test_the_seed_decides():
    assert designs.paper(SHAPE, sample()) == designs.paper(SHAPE, sample())
    other = designs.paper(SHAPE, sample(seed=1))
    assert len({d.architecture for d in designs.paper(SHAPE, sample())} & {d.architecture for d in other}) < 5


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), bundle=st.integers(1, 5), first=st.integers(0, 3), last=st.integers(0, 3))
def test_exempt_layers_stay_dense_and_bundles_share_widths(seed: int, bundle: int, first: int, last: int):
    section = sample(
        seed=seed, bundle=bundle, bundled=6, free=4, first_layers_kept=first, last_layers_kept=last
    )
    made = designs.paper(SHAPE, section)
    for architecture in (d.architecture for d in made):
        architecture.check(SHAPE)
        exempt = [*range(first), *range(SHAPE.layers - last, SHAPE.layers)]
        assert all(architecture.widths[layer] == SHAPE.widest for layer in exempt)
    for architecture in of_design(made, "bundled"):
        for start in range(first, SHAPE.layers - last, bundle):
            together = architecture.widths[start : min(start + bundle, SHAPE.layers - last)]
            assert len(set(together)) == 1


def test_free_sites_draw_for_themselves_and_kinds_apart():
    made = designs.paper(SHAPE, sample())
    free = of_design(made, "free")
    neighbours = [(a.widths[i], a.widths[i + 1]) for a in free for i in range(2, 10)]
    assert any(x.channels != y.channels for x, y in neighbours)
    assert any(x[:2] != y[:2] for x, y in neighbours)
    bundled = [a.widths[2] for a in of_design(made, "bundled")]
    assert len({(w[:2], w.channels) for w in bundled}) > len({w.channels for w in bundled})


def test_drawn_ratios_become_the_nearest_widths():
    """MLPs of 64 channels in steps of 16: 0.1 and 0.12 are nearest to dense, 0.3 to 48, 0.45 to 32."""
    expected = {0.12: 64, 0.13: 48, 0.3: 48, 0.45: 32, 0.9: 0}
    for ratio, channels in expected.items():
        section = sample(ratios=[ratio], bundled=1, free=0, mlp_granularity=16)
        (made,) = designs.paper(SHAPE, section)
        assert {w.channels for w in made.architecture.widths[2:11]} == {channels}


def test_every_ratio_of_the_grid_is_drawn():
    made = designs.paper(SHAPE, sample(free=20, bundled=0))
    drawn = {a.widths[layer].channels for a in of_design(made, "free") for layer in range(2, 11)}
    # 0.1 … 0.5 of 64 channels in steps of 4, nearest by parameters
    assert drawn == {56, 52, 44, 40, 32}


@pytest.mark.parametrize("design", ["bundled", "free"])
def test_too_few_distinct_architectures_is_told(design: str):
    other = {"bundled": "free", "free": "bundled"}[design]
    section = sample(ratios=[0.2], **{design: 2, other: 0})
    with pytest.raises(InputError, match=rf"sample\.{design} asks for 2 distinct .* found only 1; lower it"):
        designs.paper(SHAPE, section)


def test_single_sites_are_cut_alone_and_each_at_every_ratio():
    made = designs.single_site(SHAPE, sample(single_site_ratios=[0.25, 0.5]))
    assert {d.design for d in made} == {"single-site"}
    cut = [[s for s in SHAPE.sites() if d.architecture.site_ratio(SHAPE, s) > 0] for d in made]
    assert all(len(sites) == 1 for sites in cut)
    mlps = [sites[0].layer for sites in cut if sites[0].kind is Kind.MLP]
    assert sorted(mlps) == sorted([*range(SHAPE.layers)] * 2)  # no layer is exempt
    assert len({d.architecture for d in made}) == len(made)


def test_two_ratios_of_one_width_are_one_architecture():
    once = designs.single_site(SHAPE, sample(single_site_ratios=[0.25]))
    assert designs.single_site(SHAPE, sample(single_site_ratios=[0.25, 0.251])) == once
    assert designs.single_site(SHAPE, sample(single_site_ratios=[0.25]), [once[0].architecture]) == once[1:]


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 100), count=st.integers(2, 40))
def test_spread_covers_its_overall_ratios_evenly(seed: int, count: int):
    made = designs.spread(SHAPE, sample(spread=count, seed=seed))
    assert made == designs.spread(SHAPE, sample(spread=count, seed=seed))
    found = [d.architecture.overall_ratio(SHAPE) for d in made]
    wanted = [0.1 + 0.2 * (i + 0.5) / count for i in range(count)]
    assert len(found) >= count - 1
    if len(found) == count:
        assert all(abs(f - w) <= 0.06 for f, w in zip(found, wanted, strict=True))
    for d in made:
        assert d.architecture.widths[0] == d.architecture.widths[11] == SHAPE.widest


def test_spread_sites_are_unlike_each_other_and_take_every_strength():
    made = designs.spread(SHAPE, sample(spread=30))
    ratios = [
        [d.architecture.site_ratio(SHAPE, Site(layer, Kind.MLP)) for layer in range(2, 11)] for d in made
    ]
    assert sum(max(row) - min(row) > 0.15 for row in ratios) > 25
    for column in zip(*ratios, strict=True):
        assert min(column) < 0.15
        assert max(column) > 0.3


def test_a_spread_that_cannot_be_reached_is_told():
    with pytest.raises(InputError, match="this space reaches only"):
        designs.spread(SHAPE, sample(spread=4, spread_overall_ratios=[0.5, 0.9]))


def test_designs_share_no_architecture():
    section = sample(single_site_ratios=[0.3], spread=10)
    made = designs.all_designs(SHAPE, section, BUDGET)
    assert {d.design for d in made} == {*designs.BASELINES, "bundled", "free", "single-site", "spread"}
    assert len({d.architecture for d in made}) == len(made)


def test_the_stage_samples_no_architecture_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pairs are joined by architecture, so a draw that repeats a baseline would stand there twice.

    Of the four architectures that this section can draw, one is dense and one is the uniform baseline.
    """
    section = sample(
        first_layers_kept=0, last_layers_kept=0, ratios=[0.0, 0.25], bundle=12, bundled=2, free=0
    )
    params = COMMITTED.model_copy(update={"sample": section, "budget": BUDGET})
    model = describe({"model_type": SHAPE.family, **usual_settings(SHAPE)}, "a Llama")
    monkeypatch.setattr(stage, "read_model", lambda _: model)
    monkeypatch.setattr(stage, "check_source", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    stage.run(params, argparse.Namespace())
    _, made = designs.read(tmp_path / "data" / "sample" / "architectures.json")
    assert [d.design for d in made] == ["dense", "uniform", "simple", "bundled", "bundled"]
    assert len({d.architecture for d in made}) == 5


@pytest.mark.parametrize("shape", [SHAPE, SMOLLM2], ids=["small", "SmolLM2"])
@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.3])
def test_uniform_is_alike_in_every_prunable_layer_and_within_the_budget(shape: ModelShape, ratio: float):
    budget = budget_of(overall_ratio=ratio, tolerance=0.02)
    section = sample(mlp_granularity=shape.channels // 48)
    architecture = designs.uniform(shape, section, budget)
    assert ratio - 0.02 <= architecture.overall_ratio(shape) <= ratio
    prunable = range(2, shape.layers - 1)
    for layer in range(shape.layers):
        if layer not in prunable:
            assert architecture.widths[layer] == shape.widest
    one_step = {Kind.ATTENTION: 0.34, Kind.MLP: 1 / 47}
    for kind in Kind:
        ratios = [architecture.site_ratio(shape, Site(layer, kind)) for layer in prunable]
        assert max(ratios) - min(ratios) <= one_step[kind]
        assert min(ratios) > 0 or kind is Kind.ATTENTION


@pytest.mark.parametrize("shape", [SHAPE, SMOLLM2], ids=["small", "SmolLM2"])
def test_simple_prunes_mlps_only_and_all_of_them(shape: ModelShape):
    budget = budget_of(overall_ratio=0.2, tolerance=0.02)
    architecture = designs.simple(shape, sample(), budget)
    assert 0.18 <= architecture.overall_ratio(shape) <= 0.2
    assert {w[:2] for w in architecture.widths} == {(shape.kv_groups, shape.heads_per_group)}
    channels = {w.channels for w in architecture.widths}
    assert max(channels) < shape.channels
    assert max(channels) - min(channels) <= 4


def test_baselines_come_in_their_order():
    made = designs.baselines(SHAPE, sample(), BUDGET)
    assert [d.design for d in made] == ["dense", "uniform", "simple"] == list(designs.BASELINES)
    assert made[0].architecture == SHAPE.dense()
    assert made[1].architecture == designs.uniform(SHAPE, sample(), BUDGET)
    assert made[2].architecture == designs.simple(SHAPE, sample(), BUDGET)


def test_a_spread_site_is_cut_no_further_than_its_own_interval():
    """Whatever the bundled and free designs draw from."""
    section = sample(spread=30, spread_site_ratios=[0.1, 0.3], spread_overall_ratios=[0.13, 0.17])
    made = designs.spread(SHAPE, section)
    assert made == designs.spread(SHAPE, section.model_copy(update={"ratios": [0.9]}))
    cut = [d.architecture.site_ratio(SHAPE, Site(layer, Kind.MLP)) for d in made for layer in range(2, 11)]
    assert 0.09 < min(cut) < max(cut) < 0.31


def test_a_budget_that_the_prunable_sites_cannot_reach_tells_the_interval():
    """9 of 12 layers may be dropped whole, whatever ratios the designs draw: 0.75 of all parameters."""
    section = sample(mlp_granularity=1, ratios=[0.1, 0.2])
    for ratio in (0.01, 0.45, 0.7499):
        designs.check_budget(SHAPE, section, budget_of(overall_ratio=ratio, tolerance=0.01))
    with pytest.raises(InputError) as caught:
        designs.check_budget(SHAPE, section, budget_of(overall_ratio=0.7501, tolerance=0.01))
    message = str(caught.value)
    assert "budget.overall_ratio is 0.7501; expected a number from 0.0000 to 0.7500" in message
    assert "9 of 12 layers" in message


def test_a_budget_that_the_samples_do_not_surround_is_told():
    """The baselines, two of which lie on the budget, are no samples."""
    for ratio, told in ((0.2, False), (0.05, True), (0.5, True)):
        budget = budget_of(overall_ratio=ratio, tolerance=0.02)
        made = designs.all_designs(SHAPE, sample(), budget)
        sentence = designs.extrapolation(SHAPE, made, budget)
        assert (sentence is not None) == told, ratio
        if sentence:
            assert "extrapolate" in sentence


def test_limits_that_the_samples_do_not_surround_are_told():
    budget = budget_of(overall_ratio=None, size_bytes=1)  # what the budget is, its limits say
    made = designs.paper(SHAPE, sample())
    kept = sorted(d.architecture.kept_parameters(SHAPE) for d in made)
    for most, told in ((kept[0] - 1, "none is within"), (kept[3], ""), (kept[-1], "all are within")):
        limit = Limit(
            "size_bytes", most, 0, lambda kind, width: SHAPE.site_parameters(kind, full(kind, width))
        )
        sentence = designs.extrapolation(SHAPE, made, budget, [limit])
        assert sentence is None if not told else told in str(sentence)


def full(kind: Kind, width: tuple[int, ...]) -> LayerWidth:
    return LayerWidth._make((*width, 0) if kind is Kind.ATTENTION else (0, 0, *width))


@st.composite
def designed(draw: st.DrawFn) -> list[Designed]:
    found = draw(st.lists(architectures_of(SHAPE), max_size=4))
    return [Designed(a, draw(st.sampled_from(["dense", "free", "bundled"]))) for a in found]


@settings(deadline=None, max_examples=20)
@given(made=designed())
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, made: list[Designed]):
    path = tmp_path_factory.mktemp("designs") / "architectures.json"
    designs.write(path, SHAPE, made)
    assert designs.read(path) == (SHAPE, made)


def test_the_file_names_the_overall_ratio(tmp_path: Path):
    path = tmp_path / "architectures.json"
    made = designs.paper(SHAPE, sample(bundled=3, free=0))
    designs.write(path, SHAPE, made)
    lines = [line for line in path.read_text().splitlines() if '"widths"' in line]
    rows = json.loads(path.read_text())["architectures"]
    assert len(lines) == len(rows) == 3
    for row, item in zip(rows, made, strict=True):
        assert row["overall_ratio"] == pytest.approx(item.architecture.overall_ratio(SHAPE), abs=1e-6)
        assert row["id"] == item.architecture.id


def _drop_key(document: dict[str, Any]) -> None:
    del document["architectures"][0]["id"]


def _other_width(document: dict[str, Any]) -> None:
    document["architectures"][1]["widths"][3][2] -= 1


def _too_wide(document: dict[str, Any]) -> None:
    row = document["architectures"][0]
    row["widths"][0][2] = 65
    row["id"] = Architecture.from_json(row["widths"]).id


def _too_few_layers(document: dict[str, Any]) -> None:
    row = document["architectures"][0]
    row["widths"].pop()
    row["id"] = Architecture.from_json(row["widths"]).id


def _bad_shape(document: dict[str, Any]) -> None:
    del document["shape"]["hidden"]


def _no_numbers(document: dict[str, Any]) -> None:
    document["architectures"][0]["widths"][0] = ["a", "b", "c"]


@pytest.mark.parametrize(
    ("tamper", "says"),
    [
        (_drop_key, "'id'"),
        (_other_width, "has widths whose id is"),
        (_too_wide, "layer 0: .* exceeds"),
        (_too_few_layers, "has 11 layers; the model has 12"),
        (_bad_shape, "hidden"),
        (_no_numbers, "layer 0 has widths"),
    ],
)
def test_a_tampered_file_is_refused(tmp_path: Path, tamper: Callable[[dict[str, Any]], None], says: str):
    path = tmp_path / "architectures.json"
    designs.write(path, SHAPE, designs.paper(SHAPE, sample(bundled=2, free=0)))
    document = read_json(path, designs.SCHEMA, designs.VERSION)
    tamper(document)
    write_json(path, designs.SCHEMA, designs.VERSION, document)
    with pytest.raises(
        InputError, match=rf"architectures\.json is damaged \(.*{says}.*\); delete it and run"
    ):
        designs.read(path)


def test_a_model_of_another_shape_is_noticed(tmp_path: Path):
    """It stands where the model stood that the architectures were drawn for."""
    model = ModelSection(source=str(tmp_path), revision=None, trust_remote_code=False)

    def put(shape: ModelShape) -> None:
        config = {"model_type": shape.family, "max_position_embeddings": 64, **usual_settings(shape)}
        (tmp_path / "config.json").write_text(json.dumps(config))

    put(SHAPE)
    designs.check_model(Path("architectures.json"), SHAPE, model)
    put(replace(SHAPE, channels=96, layers=6))
    says = r"drawn for a model with layers 12, channels 64, and .* now has layers 6, channels 96.*-f sample"
    with pytest.raises(InputError, match=says):
        designs.check_model(Path("architectures.json"), SHAPE, model)
