"""The second repair: each site's own least-squares problem, and a network nearer to the dense one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from stages.architecture import Architecture, Kind, LayerWidth, Site
from stages.evaluate.calibrate import second_repair, statistics
from stages.evaluate.calibrate.importance import CalibrationData, moments
from stages.evaluate.calibrate.second_repair import PRIOR_TOKENS, SMALL_WEIGHT, repair_again
from stages.evaluate.calibrate.whitening import elements
from stages.evaluate.network.batch import Batch
from stages.evaluate.network.elastic import ElasticNetwork
from stages.evaluate.network.repair import NOTHING_REPAIRED, Given, Repair
from tests import tiny
from tests.conftest import TinyFolder

BATCHES = [tiny.causal(tiny.random_tokens(rows=8, length=48, seed=seed)) for seed in (3, 4)]
DAMPING = 0.003
PRUNED = Architecture(
    (LayerWidth(2, 3, 40), LayerWidth(1, 3, 32), LayerWidth(2, 2, 48), LayerWidth(2, 0, 24))
)

BEFORE = [[2, 3, 60], [2, 3, 44], [2, 2, 64], [0, 0, 40]]
WIDE = {
    "llama-wide": tiny.Variant("llama", {"pruned": BEFORE}),
    "gemma3-wide": tiny.Variant("gemma3_text", tiny.GEMMA3 | {"pruned": BEFORE}),
}
"""Models that were pruned before, and still hold `PRUNED`."""


@dataclass
class Bench:
    """An elastic network and its first repair."""

    network: ElasticNetwork
    repair: Repair

    def again(self, architecture: Architecture) -> dict[Site, torch.Tensor]:
        return repair_again(self.network, self.repair, [architecture], BATCHES)[architecture]


@pytest.fixture(
    params=[
        "llama", "llama-biased", "qwen3", "granite-biased-tied", "gemma3-biased-untied", "olmo3-tied",
        "llama-wide", "gemma3-wide",
    ]
)  # fmt: skip
def bench(request: pytest.FixtureRequest, tiny_folder: TinyFolder, tmp_path: Path) -> Bench:
    variant = (tiny.VARIANTS | WIDE)[request.param]
    dense = tiny.network_of(tiny_folder(variant.family, **variant.options))
    gathered = dict(statistics.gather(dense, BATCHES))
    order = moments.activation(CalibrationData(dense, BATCHES, gathered.items)).order()
    network = dense.sorted(order)
    return Bench(network, tiny.repair_of(network, gathered, DAMPING))


def final_states(network: ElasticNetwork, architecture: Architecture, repair: Repair) -> torch.Tensor:
    with torch.inference_mode():
        states = [network.hidden_states(architecture, batch, repair=repair)[0] for batch in BATCHES]
    return torch.cat([state.flatten(0, 1) for state in states])


def test_it_brings_the_last_hidden_states_nearer_to_the_dense_ones(bench: Bench) -> None:
    network = bench.network
    dense = final_states(network, network.shape.dense(), NOTHING_REPAIRED)
    once = (final_states(network, PRUNED, bench.repair) - dense).square().sum()
    again = (final_states(network, PRUNED, Given(bench.again(PRUNED))) - dense).square().sum()
    assert again < 0.9 * once


def test_what_waits_in_host_memory_comes_back_as_it_was(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, asked = bench.again(PRUNED), []

    def tight(device: torch.device, size: float) -> bool:
        asked.append(size)
        return False

    monkeypatch.setattr(second_repair, "fits", tight)
    put, copied = second_repair._Aside.put, []

    def counted(self: second_repair._Aside, tensor: torch.Tensor) -> torch.Tensor:
        copied.append(tensor.shape)
        return put(self, tensor)

    monkeypatch.setattr(second_repair._Aside, "put", counted)
    again = bench.again(PRUNED)
    tokens, shape = sum(batch.tokens.numel() for batch in BATCHES), bench.network.shape
    widest = max(elements(shape, site) for site in shape.sites())
    states = tokens * 4 * (4 * shape.hidden + widest)
    assert asked == [states + second_repair.solving_bytes(shape)]
    assert len(copied) > 2 * len(BATCHES) * shape.layers
    assert list(again) == list(found)
    for site, projection in found.items():
        assert torch.equal(again[site], projection)
        assert projection.device.type == "cpu"


def test_every_kept_site_is_refitted_to_its_own_inputs(bench: Bench) -> None:
    """Each projection solves the stacked least-squares problem on what reaches it in the repaired network."""
    network, found = bench.network, bench.again(PRUNED)
    kept = [s for s in network.shape.sites() if PRUNED.widths[s.layer].keeps(s.kind)]
    assert list(found) == kept
    starts = {site: network.projection(site, PRUNED.widths[site.layer], bench.repair) for site in kept}
    for site in (Site(1, Kind.ATTENTION), Site(1, Kind.MLP), Site(2, Kind.ATTENTION)):
        inputs, goals = [], []
        for batch in BATCHES:
            with torch.inference_mode():
                x, before = _reaching(network, PRUNED, Given(found), batch, site)
                full, dense_before = _reaching(network, network.shape.dense(), NOTHING_REPAIRED, batch, site)
                dense_after = network.output(site, network.shape.widths[site.layer], full, onto=dense_before)
            bias = network.layers[site.layer].o_bias if site.kind is Kind.ATTENTION else None
            bias = network.layers[site.layer].down_bias if site.kind is Kind.MLP else bias
            bias = torch.zeros(()) if bias is None else bias
            goal = (dense_after - before) / network.recipe.residual_scale - bias
            if (norm := network.layers[site.layer].norm_after(site.kind)) is not None:
                made = network.made(site, network.shape.widths[site.layer], full)
                share = 1 / (made.square().mean(-1, keepdim=True) + network.recipe.norm_eps).sqrt()
                weight = norm + network.recipe.norm_offset
                damped = weight / (weight.square() + SMALL_WEIGHT**2 * weight.square().mean())
                x, goal = x * share, (made - bias) * share + (dense_before - before) * damped
            inputs.append(x.flatten(0, 1).double())
            goals.append(goal.flatten(0, 1).double())
        x, goal = torch.cat(inputs), torch.cat(goals)
        level = (PRIOR_TOKENS * x.shape[1] * x.square().mean()).sqrt()
        rows = torch.cat([x, level * torch.eye(x.shape[1], dtype=x.dtype)])
        wanted = torch.cat([goal, level * starts[site].double().T])
        expected = torch.linalg.lstsq(rows, wanted).solution.T
        torch.testing.assert_close(found[site].double(), expected, rtol=5e-3, atol=5e-4)


def _reaching(
    network: ElasticNetwork, architecture: Architecture, repair: Repair, batch: Batch, site: Site
) -> tuple[torch.Tensor, torch.Tensor]:
    """The site's activations, and the hidden states that its output is added to."""
    places = network.places(batch)
    _, kept = network.hidden_states(architecture, batch, keep={site.layer}, repair=repair)
    hidden = kept[site.layer]
    width = architecture.widths[site.layer]
    if site.kind is Kind.MLP and width.keeps(Kind.ATTENTION):
        attention = Site(site.layer, Kind.ATTENTION)
        mixed = network.activations(attention, width, hidden, places)
        hidden = network.output(attention, width, mixed, onto=hidden, repair=repair)
    return network.activations(site, width, hidden, places), hidden


def test_a_dense_architecture_keeps_its_projections(bench: Bench) -> None:
    dense = bench.network.shape.dense()
    for site, projection in bench.again(dense).items():
        own = bench.network.projection(site, dense.widths[site.layer])
        torch.testing.assert_close(projection, own, rtol=1e-3, atol=1e-3)
