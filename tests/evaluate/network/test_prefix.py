"""Sharing prefixes changes how many layers are run, and not one bit of any result."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.architecture import Architecture, LayerWidth
from stages.evaluate.network.batch import Batch
from stages.evaluate.network.elastic import ElasticNetwork
from stages.evaluate.network.prefix import SharedPrefix, branch_depths, tree_order
from tests import tiny
from tests.conftest import TinyFolder

DEEP = 12
BATCHES = [tiny.causal(tiny.random_tokens(2, 9)), tiny.causal(tiny.random_tokens(1, 7, seed=2))]
STATE_BYTES = (2 * 9 + 1 * 7) * tiny.HIDDEN * 4
LIMITS = {
    "none": 0,
    "less than one": STATE_BYTES - 1,
    "one": STATE_BYTES,
    "two": 2 * STATE_BYTES,
    "all": 10**9,
}

few_widths = st.sampled_from([LayerWidth(2, 3, 64), LayerWidth(1, 2, 20), LayerWidth(0, 0, 0)])
few_architectures = st.lists(
    st.lists(few_widths, min_size=4, max_size=4).map(lambda widths: Architecture(tuple(widths))), max_size=7
)


@pytest.fixture(scope="module")
def network(tiny_folder: TinyFolder) -> ElasticNetwork:
    return tiny.elastic_of(tiny_folder("llama", attention_bias=True))


@pytest.fixture
def deep(tiny_folder: TinyFolder) -> ElasticNetwork:
    return tiny.elastic_of(tiny_folder("llama", num_hidden_layers=DEEP, intermediate_size=16))


def single_site_variations(network: ElasticNetwork) -> list[Architecture]:
    """The dense architecture, and for each site one that cuts that site alone."""
    dense = network.shape.dense().widths
    variations = [Architecture(dense)]
    for layer, width in enumerate(dense):
        for cut in (width._replace(kv_groups=1), width._replace(channels=8)):
            variations.append(Architecture((*dense[:layer], cut, *dense[layer + 1 :])))
    return variations


def shared(
    network: ElasticNetwork,
    architectures: Sequence[Architecture],
    limit: int,
    batches: Sequence[Batch] = BATCHES,
) -> list[list[torch.Tensor]]:
    with torch.inference_mode():
        prefix = SharedPrefix(network, batches, limit)
        branches = branch_depths(architectures)
        return [prefix.log_likelihoods(a, b) for a, b in zip(architectures, branches, strict=True)]


def assert_bitwise_unshared(
    network: ElasticNetwork, architectures: Sequence[Architecture], found: list[list[torch.Tensor]]
) -> None:
    for architecture, results in zip(architectures, found, strict=True):
        with torch.inference_mode():
            expected = [network.log_likelihoods(architecture, batch) for batch in BATCHES]
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("order", ["tree", "shuffled"])
def test_sharing_changes_no_bit(network: ElasticNetwork, limit: int, order: str) -> None:
    generator = torch.Generator().manual_seed(4)
    architectures = [tiny.random_architecture(network.shape, generator) for _ in range(4)]
    architectures += single_site_variations(network)
    architectures += [Architecture((*a.widths[:2], *b.widths[2:])) for a, b in pairwise(architectures[:4])]
    if order == "tree":
        architectures = tree_order(architectures)
    else:
        random.Random(0).shuffle(architectures)
    assert_bitwise_unshared(network, architectures, shared(network, architectures, limit))


@settings(max_examples=40, deadline=None)
@given(few_architectures, st.sampled_from(list(LIMITS.values())))
def test_sharing_changes_no_bit_of_any_sequence(
    network: ElasticNetwork, architectures: list[Architecture], limit: int
) -> None:
    assert_bitwise_unshared(network, architectures, shared(network, architectures, limit))


def test_results_differ_between_architectures(network: ElasticNetwork) -> None:
    """Or bitwise equality would prove nothing."""
    found = [torch.cat(results) for results in shared(network, single_site_variations(network), 10**9)]
    assert all(not torch.allclose(a, b, atol=1e-3) for i, a in enumerate(found) for b in found[:i])


def count_runs(
    network: ElasticNetwork,
    monkeypatch: pytest.MonkeyPatch,
    architectures: Sequence[Architecture],
    limit: int,
) -> int:
    """Layers run for one batch."""
    runs = 0
    run_layer = ElasticNetwork.run_layer

    def counting(self: ElasticNetwork, *arguments: object, **options: object) -> torch.Tensor:
        nonlocal runs
        runs += 1
        return run_layer(self, *arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(ElasticNetwork, "run_layer", counting)
        shared(network, architectures, limit, BATCHES[:1])
    return runs


def test_single_site_variations_cost_the_nodes_of_their_tree(
    deep: ElasticNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    architectures = tree_order(single_site_variations(deep))
    nodes = {a.widths[:depth] for a in architectures for depth in range(1, DEEP + 1)}
    naive = len(architectures) * DEEP
    assert count_runs(deep, monkeypatch, architectures, 10**9) == len(nodes)
    assert 0.5 < len(nodes) / naive < 0.6
    assert count_runs(deep, monkeypatch, architectures, 0) == naive
    tight = count_runs(deep, monkeypatch, architectures, 2 * STATE_BYTES)
    assert len(nodes) < tight < naive


@settings(max_examples=40, deadline=None)
@given(few_architectures)
def test_in_tree_order_no_layer_is_run_twice(
    network: ElasticNetwork, architectures: list[Architecture]
) -> None:
    architectures = tree_order(architectures)
    nodes = {a.widths[:depth] for a in architectures for depth in range(1, 5)}
    repeats = sum(a == b for a, b in pairwise(architectures))  # the last state is read, not kept
    with pytest.MonkeyPatch.context() as patch:
        runs = count_runs(network, patch, architectures, 10**9)
    assert len(nodes) <= runs <= len(nodes) + 4 * repeats


def shared_by(architectures: Sequence[Architecture]) -> int:
    """The most leading layers in which all are alike."""
    return max(depth for depth in range(5) if len({a.widths[:depth] for a in architectures}) == 1)


@given(few_architectures)
def test_branch_depths_are_where_later_paths_leave(architectures: list[Architecture]) -> None:
    count = len(architectures)
    expected = [
        {shared_by(architectures[i : j + 1]) for j in range(i + 1, count)} - {0} for i in range(count)
    ]
    assert branch_depths(architectures) == expected


@given(few_architectures)
def test_in_tree_order_branches_are_common_prefixes_of_pairs(architectures: list[Architecture]) -> None:
    """Then nothing shared with a later architecture is lost on the way to it."""
    ordered = tree_order(architectures)
    assert sorted(a.id for a in ordered) == sorted(a.id for a in architectures)
    expected = [
        {shared_by([first, later]) for later in ordered[i + 1 :]} - {0} for i, first in enumerate(ordered)
    ]
    assert branch_depths(ordered) == expected


def test_no_more_states_are_kept_than_memory_holds(network: ElasticNetwork) -> None:
    architectures = tree_order(single_site_variations(network))
    for limit in (0, STATE_BYTES - 1, STATE_BYTES, 2 * STATE_BYTES - 1, 2 * STATE_BYTES):
        most = 0
        prefix = SharedPrefix(network, BATCHES, limit)
        for architecture, branches in zip(architectures, branch_depths(architectures), strict=True):
            with torch.inference_mode():
                prefix.log_likelihoods(architecture, branches)
            kept = sum(state.nbytes for states in prefix._states for state in states.values())
            assert kept <= limit
            most = max(most, kept)
        assert 2 * most >= limit  # texts too long to be shared whole are shared in part


def test_an_interrupted_measurement_leaves_no_wrong_state(
    network: ElasticNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = network.shape.dense().widths
    first, second = (Architecture((*dense[:2], LayerWidth(1, h, 9), dense[3])) for h in (1, 2))
    third = Architecture((*first.widths[:3], LayerWidth(2, 1, 30)))
    with torch.inference_mode():
        prefix = SharedPrefix(network, BATCHES, 10**9)
        prefix.log_likelihoods(first, {2, 3})
        read = network.read

        def interrupted(hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
            if batch is BATCHES[1]:
                raise KeyboardInterrupt
            return read(hidden, batch)

        with monkeypatch.context() as patch:
            patch.setattr(network, "read", interrupted)
            with pytest.raises(KeyboardInterrupt):
                prefix.log_likelihoods(second, {2, 3})
        assert_bitwise_unshared(network, [third], [prefix.log_likelihoods(third, set())])
