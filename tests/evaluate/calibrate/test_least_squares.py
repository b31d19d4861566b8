"""Repair: the least-squares solution, found again by an independent solver, and really better."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stages.architecture import Architecture, Kind, LayerWidth, ModelShape, Site, Width
from stages.evaluate.calibrate import statistics
from stages.evaluate.calibrate.cache import TensorCache
from stages.evaluate.calibrate.least_squares import LeastSquares
from stages.evaluate.calibrate.statistics import SiteStatistics
from stages.evaluate.calibrate.whitening import Room, orders_of, prefix_order
from stages.evaluate.network.elastic import ElasticNetwork
from stages.files import InputError
from tests import tiny
from tests.conftest import TinyFolder

CALIBRATION = [tiny.causal(tiny.random_tokens(rows=6, length=48, seed=seed)) for seed in (3, 4)]
DAMPING = 0.003


class Bench:
    """A sorted network, its statistics and, recorded apart from them, every site's activations."""

    def __init__(self, folder: Path) -> None:
        unsorted = tiny.network_of(folder)
        self.statistics = dict(statistics.gather(unsorted, CALIBRATION))
        self.network: ElasticNetwork = unsorted.sorted(tiny.random_order(unsorted.shape))
        self.activations: dict[Site, torch.Tensor] = {}
        for batch in CALIBRATION:
            with torch.inference_mode():
                self.network.observe(batch, self._record)
        self.repair = tiny.repair_of(self.network, self.statistics, DAMPING)

    def _record(self, site: Site, x: torch.Tensor) -> None:
        old = [self.activations[site]] if site in self.activations else []
        self.activations[site] = torch.cat([*old, x.flatten(0, 1).double()])

    def kept(self, site: Site, width: LayerWidth) -> list[int]:
        shape = self.network.shape
        if site.kind is Kind.MLP:
            return list(range(width.channels))
        size = shape.widths[site.layer].heads_per_group * shape.head_dim
        return [
            group * size + element
            for group in range(width.kv_groups)
            for element in range(width.heads_per_group * shape.head_dim)
        ]

    def weight(self, site: Site) -> torch.Tensor:
        layer = self.network.layers[site.layer]
        return (layer.o.flatten(1) if site.kind is Kind.ATTENTION else layer.down).double()


@pytest.fixture(scope="module")
def bench(tiny_folder: TinyFolder) -> Bench:
    return Bench(tiny_folder("llama"))


@pytest.fixture(scope="module", params=[None, *tiny.PRUNED_BEFORE])
def any_bench(request: pytest.FixtureRequest, bench: Bench, tiny_folder: TinyFolder) -> Bench:
    """The same of models that were pruned before; of such whose outputs are not normed."""
    if request.param is None:
        return bench
    variant = tiny.PRUNED_BEFORE[request.param]
    found = Bench(tiny_folder(variant.family, **variant.options))
    if found.network.recipe.norm_after:
        pytest.skip("what a norm stands behind has a test of its own")
    return found


widths = st.builds(LayerWidth, st.integers(1, 2), st.integers(1, 3), st.integers(1, 63))


@given(width=widths, layer=st.integers(0, 3), kind=st.sampled_from(list(Kind)))
@settings(max_examples=30, deadline=None)
def test_it_is_the_ridge_solution(any_bench: Bench, width: LayerWidth, layer: int, kind: Kind) -> None:
    """Against a stacked least-squares problem on the recorded activations themselves."""
    bench, site = any_bench, Site(layer, kind)
    width = LayerWidth(*map(min, width, bench.network.shape.widths[layer]))
    assume(width.keeps(kind))
    found = bench.repair.projection(site, width)
    if width.of(kind) == bench.network.shape.width(site):
        assert found is None
        return
    assert found is not None
    x, w = bench.activations[site], bench.weight(site)
    level = DAMPING * x.square().sum(0).mean()
    kept = bench.kept(site, width)
    rows = torch.cat([x[:, kept], level.sqrt() * torch.eye(len(kept), dtype=x.dtype)])
    goal = torch.cat([x @ w.T, level.sqrt() * w[:, kept].T])  # it strays from W by as little as it can
    expected = torch.linalg.lstsq(rows, goal).solution.T
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=2e-4)


def test_behind_a_norm_every_token_counts_as_it_is_scaled(tiny_folder: TinyFolder) -> None:
    variant = tiny.VARIANTS["gemma3"]
    bench, width = Bench(tiny_folder(variant.family, **variant.options)), LayerWidth(1, 2, 40)
    for site in (Site(1, Kind.ATTENTION), Site(2, Kind.MLP)):
        x, w, kept = bench.activations[site], bench.weight(site), bench.kept(site, width)
        made = x @ w.T
        x = x / (made.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        level = DAMPING * x.square().sum(0).mean()
        rows = torch.cat([x[:, kept], level.sqrt() * torch.eye(len(kept), dtype=x.dtype)])
        goal = torch.cat([x @ w.T, level.sqrt() * w[:, kept].T])
        found = bench.repair.projection(site, width)
        assert found is not None
        expected = torch.linalg.lstsq(rows, goal).solution.T
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=2e-4)


def test_repair_brings_the_output_nearer_than_cutting(bench: Bench) -> None:
    for site in bench.network.shape.sites():
        width = LayerWidth(1, 2, 40)
        repaired = bench.repair.projection(site, width)
        assert repaired is not None
        x, w = bench.activations[site], bench.weight(site)
        kept = bench.kept(site, width)
        error = (x[:, kept] @ repaired.double().T - x @ w.T).square().sum()
        cut = (x[:, kept] @ w[:, kept].T - x @ w.T).square().sum()
        assert error < cut


def test_the_network_uses_it_and_the_slice_carries_it(bench: Bench) -> None:
    architecture = Architecture(
        (LayerWidth(2, 2, 40), LayerWidth(1, 3, 64), LayerWidth(2, 3, 24), LayerWidth(0, 0, 0))
    )
    tokens = tiny.random_tokens()
    plain = tiny.elastic_logits(bench.network, architecture, tokens)
    repaired = tiny.elastic_logits(bench.network, architecture, tokens, bench.repair)
    state = bench.network.sliced_state(architecture, bench.repair)
    assert (plain - repaired).abs().max() > 1e-2
    for layer, width in enumerate(architecture.widths):
        for kind, name in ((Kind.ATTENTION, "self_attn.o_proj"), (Kind.MLP, "mlp.down_proj")):
            key = f"model.layers.{layer}.{name}.weight"
            if not (width.has_attention if kind is Kind.ATTENTION else width.has_mlp):
                assert key not in state
                continue
            found = bench.repair.projection(Site(layer, kind), width)
            own = bench.weight(Site(layer, kind))[:, bench.kept(Site(layer, kind), width)].float()
            torch.testing.assert_close(state[key], own if found is None else found)


def test_each_site_and_width_is_solved_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    solved: list[tuple[Site, Width]] = []
    original = LeastSquares._solve

    def counted(self: LeastSquares, site: Site, kept: Width) -> torch.Tensor:
        solved.append((site, kept))
        return original(self, site, kept)

    monkeypatch.setattr(LeastSquares, "_solve", counted)
    site, width = Site(1, Kind.MLP), LayerWidth(2, 3, 32)
    repair = tiny.repair_of(bench.network, bench.statistics, DAMPING)
    one, again = repair.projection(site, width), repair.projection(site, width)
    assert solved == [(site, (32,))]
    assert one is not None
    assert again is one


def test_statistics_are_asked_once_and_only_where_something_is_cut(bench: Bench) -> None:
    asked = 0

    def moments() -> Iterable[tuple[Site, SiteStatistics]]:
        nonlocal asked
        asked += 1
        yield from bench.statistics.items()

    repair = LeastSquares(bench.network, moments, DAMPING, Room(2**30, 0, Path()))
    repair.prepare([bench.network.shape.dense()])
    assert asked == 0
    repair.prepare([cut_everywhere(bench.network.shape)])
    repair.projection(Site(0, Kind.MLP), LayerWidth(2, 3, 32))
    assert asked == 1


def cut_everywhere(shape: ModelShape) -> Architecture:
    return Architecture((LayerWidth(1, 2, 32),) * shape.layers)


def assert_same_projections(bench: Bench, repair: LeastSquares) -> None:
    """A repair gives what the bench's own gives, to the last digit."""
    for site in bench.network.shape.sites():
        width = LayerWidth(1, 2, 40)
        found, expected = repair.projection(site, width), bench.repair.projection(site, width)
        assert found is not None
        assert expected is not None
        assert found.equal(expected)


@pytest.mark.parametrize("room", [(0, 0), (0, 2**30), (40_000, 20_000)], ids=["disk", "host", "all"])
def test_wherever_whitenings_lie_the_projections_are_the_same(
    bench: Bench, tmp_path: Path, room: tuple[int, int]
) -> None:
    repair = LeastSquares(bench.network, bench.statistics.items, DAMPING, Room(*room, tmp_path / "deep"))
    assert_same_projections(bench, repair)
    assert not list(tmp_path.rglob("*.*"))  # nothing is left behind that a kill could leave


def test_a_disk_that_takes_no_whitening_is_named(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    repair = LeastSquares(bench.network, bench.statistics.items, DAMPING, Room(0, 0, tmp_path))
    with pytest.raises(InputError, match=r"No space left on device.*PRUNECAST_CACHE"):
        repair.projection(Site(0, Kind.MLP), LayerWidth(1, 2, 40))


def test_in_another_precision_the_whitenings_are_the_same(tiny_folder: TinyFolder, bench: Bench) -> None:
    """What a GPU measures in bfloat16 is exported from exact weights, and no statistics are gathered anew."""
    folder, order = tiny_folder("llama"), bench.network.order
    rounded = tiny.network_of(folder, torch.bfloat16).sorted(order)
    repair = tiny.repair_of(rounded, bench.statistics, DAMPING)
    exact = repair.on(bench.network)
    assert_same_projections(bench, exact)
    assert repair.on(rounded) is repair


@pytest.mark.parametrize("kind", list(Kind))
def test_a_prefix_of_a_whitening_is_the_whitening_of_the_prefix(bench: Bench, kind: Kind) -> None:
    """What makes every width of an order a look-up, shown on the activations themselves."""
    shape, site = bench.network.shape, Site(2, kind)
    x = bench.activations[site]
    for heads in orders_of(shape, site):
        order = prefix_order(shape, site, heads)
        assert sorted(order.tolist()) == list(range(x.shape[1]))
        white = bench.repair.whitening(site, heads).double()
        damped = x[:, order].T @ x[:, order]
        damped += DAMPING * damped.diagonal().mean() * torch.eye(len(damped), dtype=x.dtype)
        for size in (len(damped) // 3, len(damped)):
            within = white[:size, :size] @ damped[:size, :size] @ white[:size, :size].T
            torch.testing.assert_close(within, torch.eye(size, dtype=x.dtype), rtol=0, atol=2e-3)


def test_statistics_are_the_activations_moments(bench: Bench, tiny_folder: TinyFolder) -> None:
    recorded: dict[Site, list[torch.Tensor]] = {}
    network = tiny.network_of(tiny_folder("llama"))
    for batch in CALIBRATION:
        with torch.inference_mode():
            network.observe(
                batch, lambda site, x: recorded.setdefault(site, []).append(x.flatten(0, 1).double())
            )
    for site, found in bench.statistics.items():
        x = torch.cat(recorded[site])
        assert found.tokens == len(x) == 2 * 6 * 48
        torch.testing.assert_close(found.gram.double(), x.T @ x, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.variances(), x.var(0), rtol=1e-3, atol=1e-5)


def test_observed_activations_are_the_inputs_of_the_output_projections(tiny_folder: TinyFolder) -> None:
    """Against forward hooks on transformers' own model."""
    folder = tiny_folder("llama")
    seen: dict[Site, torch.Tensor] = {}
    model = tiny.reference(folder)
    hooked: dict[Site, torch.Tensor] = {}
    for index, layer in enumerate(model.model.layers):
        for kind, module in ((Kind.ATTENTION, layer.self_attn.o_proj), (Kind.MLP, layer.mlp.down_proj)):
            site = Site(index, kind)
            module.register_forward_pre_hook(lambda _, inputs, site=site: hooked.__setitem__(site, inputs[0]))
    batch = CALIBRATION[0]
    with torch.inference_mode():
        tiny.network_of(folder).observe(batch, seen.__setitem__)
        model(batch.tokens)
    assert seen.keys() == hooked.keys()
    for site, x in seen.items():
        torch.testing.assert_close(x, hooked[site], rtol=1e-4, atol=1e-5)


class TestTensorCache:
    def test_round_trip_and_absence(self, tmp_path: Path) -> None:
        cache = TensorCache(tmp_path / "new", 10**6)
        assert cache.get("a") is None
        cache.put("a", {"x": torch.arange(5.0)})
        found = TensorCache(tmp_path / "new", 10**6).get("a")
        assert found is not None
        assert torch.equal(found["x"], torch.arange(5.0))

    def test_the_longest_unused_go_first_and_the_limit_holds(self, tmp_path: Path) -> None:
        import os

        cache = TensorCache(tmp_path, 9000)
        for index, key in enumerate("abc"):
            cache.put(key, {"x": torch.zeros(500)})  # a little over 2,000 bytes each
            os.utime(tmp_path / f"{key}.safetensors", (index, index))
        assert cache.get("a") is not None  # used again, so the newest now
        for key in "de":
            cache.put(key, {"x": torch.zeros(500)})
        assert cache.get("b") is None
        assert cache.get("a") is not None
        assert cache.get("e") is not None
        assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 9000

    def test_an_entry_larger_than_the_limit_is_kept_alone(self, tmp_path: Path) -> None:
        cache = TensorCache(tmp_path, 100)
        cache.put("a", {"x": torch.zeros(500)})
        cache.put("b", {"x": torch.zeros(500)})
        assert cache.get("a") is None
        assert cache.get("b") is not None

    def test_a_damaged_entry_counts_as_absent(self, tmp_path: Path) -> None:
        cache = TensorCache(tmp_path, 10**6)
        cache.put("a", {"x": torch.zeros(5)})
        (tmp_path / "a.safetensors").write_bytes(b"broken")
        assert cache.get("a") is None
