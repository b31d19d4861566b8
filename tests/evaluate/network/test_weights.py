"""Pruned weights: they run as the prefix view that they were cut from, and weightings are told apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stages.architecture import Architecture
from stages.evaluate.network.elastic import ElasticNetwork
from stages.evaluate.network.repair import NOTHING_REPAIRED, Given, Repair
from stages.evaluate.network.weights import PrunedNetwork, PrunedWeights, State
from tests import tiny
from tests.conftest import TinyFolder

TOKENS = tiny.random_tokens(2, 20)


def repair_of(network: ElasticNetwork, architecture: Architecture) -> Repair:
    """Random projections for every site that is there."""
    generator = torch.Generator().manual_seed(9)
    return Given(
        {
            site: torch.randn(network.projection(site, width).shape, generator=generator) / 8
            for site in network.shape.sites()
            if (width := architecture.widths[site.layer]).keeps(site.kind)
        }
    )


@pytest.mark.parametrize("widths", [tiny.MIXED, tiny.HOLLOW], ids=["mixed", "hollow"])
@pytest.mark.parametrize("name", ["llama-biased", "llama-tied", "llama-mha", "qwen2", "qwen3-biased"])
def test_they_run_as_the_repaired_prefix_view(
    name: str, widths: Architecture, tiny_folder: TinyFolder
) -> None:
    variant = tiny.VARIANTS[name]
    dense = tiny.network_of(tiny_folder(variant.family, **variant.options))
    network = dense.sorted(tiny.random_order(dense.shape))
    architecture = tiny.fitted(widths, network.shape)
    for repair in (NOTHING_REPAIRED, repair_of(network, architecture)):
        state = network.sliced_state(architecture, repair)
        own = PrunedNetwork(architecture, state, network, one_at_a_time=repair is not NOTHING_REPAIRED)
        expected = tiny.elastic_logits(network, architecture, TOKENS, repair)
        tiny.assert_same(own.logits_of(TOKENS), expected)
        batch = tiny.causal(TOKENS)
        with torch.inference_mode():
            tiny.assert_same(
                own.log_likelihoods(architecture, batch),
                network.log_likelihoods(architecture, batch, repair),
            )


def test_every_tensor_is_their_own(tiny_folder: TinyFolder) -> None:
    """Embedding, final norm and head too: a recovery may have changed them."""
    network = tiny.elastic_of(tiny_folder("llama"))
    state = network.sliced_state(tiny.MIXED)
    before = PrunedNetwork(tiny.MIXED, state, network).logits_of(TOKENS)
    for name in state:
        changed = state | {name: state[name] + 0.5}
        after = PrunedNetwork(tiny.MIXED, changed, network).logits_of(TOKENS)
        assert (after - before).abs().max() > 1e-4, name


def test_the_digest_is_of_the_architecture_and_every_step() -> None:

    def costly(dtype: torch.dtype) -> State:
        raise AssertionError("nothing is computed to know what it will be called")

    weights = PrunedWeights(tiny.MIXED, ({"cut": {"weights": "a"}},), costly)
    again = weights.then({"repair again": {"damping": 0.1}}, lambda dtype: {"x": torch.ones(1, dtype=dtype)})
    others = [
        again,
        replace(weights, architecture=tiny.HOLLOW),
        replace(weights, made=({"cut": {"weights": "b"}},)),
        again.then({"repair again": {"damping": 0.1}}, costly),
    ]
    digests = {weights.digest, *(other.digest for other in others)}
    assert len(digests) == 5
    assert replace(weights, make=again.make).digest == weights.digest
    assert again.architecture == weights.architecture
    assert again.make(torch.float16)["x"].dtype == torch.float16
