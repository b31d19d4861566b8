"""The second repair: each site's own least-squares problem, and a network nearer to the dense one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stages.architecture import Architecture, Kind, LayerWidth, Site
from stages.evaluate.calibrate import statistics
from stages.evaluate.calibrate.cache import TensorCache
from stages.evaluate.calibrate.importance import from_statistics
from stages.evaluate.calibrate.reconstruction import Reconstruction
from stages.evaluate.calibrate.sequential import repair_again
from stages.evaluate.network.elastic import ElasticNetwork
from tests import tiny
from tests.conftest import TinyFolder

BATCHES = [tiny.causal(tiny.random_tokens(rows=8, length=48, seed=seed)) for seed in (3, 4)]
DAMPING = 0.003
PRUNED = Architecture(
    (LayerWidth(2, 3, 40), LayerWidth(1, 3, 32), LayerWidth(2, 2, 48), LayerWidth(2, 0, 24))
)


@pytest.fixture(params=["llama", "llama-biased", "qwen3"])
def network(request: pytest.FixtureRequest, tiny_folder: TinyFolder, tmp_path: Path) -> ElasticNetwork:
    variant = tiny.VARIANTS[request.param]
    folder = tiny_folder(variant.family, **variant.options)
    moments = statistics.gather(tiny.network_of(folder), BATCHES)
    made = tiny.network_of(folder)
    order = from_statistics("activation", made, moments).order()
    made.sort(order)
    made.repair = Reconstruction(made, moments, order, DAMPING, TensorCache(tmp_path, 2**30), "key")
    return made


def final_states(network: ElasticNetwork, architecture: Architecture) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([network.hidden_states(architecture, batch)[0].flatten(0, 1) for batch in BATCHES])


def test_it_brings_the_last_hidden_states_nearer_to_the_dense_ones(network: ElasticNetwork) -> None:
    dense = final_states(network, network.shape.dense())
    once = (final_states(network, PRUNED) - dense).square().sum()
    found = repair_again(network, PRUNED, BATCHES, DAMPING)
    network.repair = lambda site, _: found.get(site)
    again = (final_states(network, PRUNED) - dense).square().sum()
    assert again < 0.9 * once


def test_every_kept_site_is_refitted_to_its_own_inputs(network: ElasticNetwork) -> None:
    """Each projection solves the stacked least-squares problem on what reaches it in the repaired network."""
    first = network.repair
    assert first is not None
    found = repair_again(network, PRUNED, BATCHES, DAMPING)
    kept = [s for s in network.shape.sites() if PRUNED.widths[s.layer].keeps(s.kind)]
    assert list(found) == kept
    starts = {site: network.projection(site, PRUNED.widths[site.layer]) for site in kept}
    for site in (Site(1, Kind.ATTENTION), Site(1, Kind.MLP), Site(2, Kind.ATTENTION)):
        inputs, goals = [], []
        for batch in BATCHES:
            with torch.inference_mode():
                network.repair = lambda s, _: found.get(s)
                x, before = _reaching(network, PRUNED, batch, site)
                network.repair = None
                full, dense_before = _reaching(network, network.shape.dense(), batch, site)
                dense_after = network.output(site, network.shape.dense_width, full, onto=dense_before)
            bias = network.layers[site.layer].o_bias if site.kind is Kind.ATTENTION else None
            bias = network.layers[site.layer].down_bias if site.kind is Kind.MLP else bias
            inputs.append(x.flatten(0, 1).double())
            goals.append((dense_after - before - (0 if bias is None else bias)).flatten(0, 1).double())
        x, goal = torch.cat(inputs), torch.cat(goals)
        level = (DAMPING * x.square().sum(0).mean()).sqrt()
        rows = torch.cat([x, level * torch.eye(x.shape[1], dtype=x.dtype)])
        wanted = torch.cat([goal, level * starts[site].double().T])
        expected = torch.linalg.lstsq(rows, wanted).solution.T
        torch.testing.assert_close(found[site].double(), expected, rtol=5e-3, atol=5e-4)


def _reaching(
    network: ElasticNetwork, architecture: Architecture, batch: object, site: Site
) -> tuple[torch.Tensor, torch.Tensor]:
    """The site's activations, and the hidden states that its output is added to."""
    assert isinstance(batch, type(BATCHES[0]))
    rope = network.rope(batch.positions)
    _, kept = network.hidden_states(architecture, batch, keep={site.layer})
    hidden = kept[site.layer]
    width = architecture.widths[site.layer]
    if site.kind is Kind.MLP and width.keeps(Kind.ATTENTION):
        attention = Site(site.layer, Kind.ATTENTION)
        mixed = network.activations(attention, width, hidden, batch.mask, rope)
        hidden = network.output(attention, width, mixed, onto=hidden)
    return network.activations(site, width, hidden, batch.mask, rope), hidden


def test_a_dense_architecture_keeps_its_projections(network: ElasticNetwork) -> None:
    dense = network.shape.dense()
    found = repair_again(network, dense, BATCHES, DAMPING)
    for site, projection in found.items():
        own = network.projection(site, dense.widths[site.layer])
        torch.testing.assert_close(projection, own, rtol=1e-3, atol=1e-3)
