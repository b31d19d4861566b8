"""The elastic network against transformers' own models, masked, and against a network run by hand."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.architecture import Architecture, LayerWidth
from stages.evaluate.network.decoder import Decoder, grouped_rows
from stages.evaluate.network.elastic import DenseNetwork, ElasticNetwork
from stages.evaluate.network.layers import OneAtATime
from stages.evaluate.network.prefix import common_prefix
from tests import tiny
from tests.by_hand import run_by_hand
from tests.conftest import TinyFolder

MIXED = [[2, 3, 64], [1, 2, 33], [2, 1, 0], [0, 0, 5]]
HOLLOW = [[0, 0, 40], [2, 2, 64], [0, 0, 0], [1, 3, 7]]
ZERO_FACTORS = [[2, 0, 1], [0, 3, 64], [1, 1, 64], [2, 3, 0]]
TOKENS = tiny.random_tokens()


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=3e-5)


def fitted(widths: list[list[int]], network: Decoder) -> Architecture:
    """The widths for a network of another grouping: six KV groups of one head in place of two of three."""
    if network.shape.heads_per_group == 1:
        widths = [[kv * h, min(h, 1), c] for kv, h, c in widths]
    architecture = Architecture.from_json(widths)
    architecture.check(network.shape)
    return architecture


class Pair:
    """A variant's elastic network, and transformers' model of the same folder."""

    def __init__(self, folder: Any) -> None:
        self.network = tiny.network_of(folder)
        self.model = tiny.reference(folder)
        self.dense = self.network.shape.dense()

    def masked_logits(self, architecture: Architecture, order: Any = None) -> torch.Tensor:
        model = copy.deepcopy(self.model)
        tiny.mask_removed(model, self.network.shape, architecture, order)
        return tiny.reference_logits(model, TOKENS)


@pytest.fixture(scope="module", params=tiny.VARIANTS)
def pair(request: pytest.FixtureRequest, tiny_folder: TinyFolder) -> Pair:
    variant = tiny.VARIANTS[request.param]
    return Pair(tiny_folder(variant.family, **variant.options))


@pytest.fixture(scope="module")
def biased(tiny_folder: TinyFolder) -> Pair:
    return Pair(tiny_folder("llama", attention_bias=True, mlp_bias=True))


def test_dense_logits_are_those_of_transformers(pair: Pair) -> None:
    expected = tiny.reference_logits(pair.model, TOKENS)
    assert expected.std() > 0.5  # or closeness would say little
    close(tiny.elastic_logits(pair.network, pair.dense, TOKENS), expected)


@pytest.mark.parametrize("widths", [MIXED, HOLLOW, ZERO_FACTORS], ids=["mixed", "hollow", "zero-factors"])
def test_a_prefix_view_is_the_dense_model_with_the_rest_masked(pair: Pair, widths: list[list[int]]) -> None:
    architecture = fitted(widths, pair.network)
    expected = pair.masked_logits(architecture)
    assert not torch.allclose(expected, tiny.reference_logits(pair.model, TOKENS), atol=0.1)
    close(tiny.elastic_logits(pair.network, architecture, TOKENS), expected)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 64)), min_size=4, max_size=4))
def test_every_width_is_a_masked_dense_model(biased: Pair, widths: list[tuple[int, int, int]]) -> None:
    architecture = Architecture(tuple(LayerWidth(*width) for width in widths))
    close(tiny.elastic_logits(biased.network, architecture, TOKENS), biased.masked_logits(architecture))


def test_sorting_leaves_the_dense_network_and_decides_what_goes(pair: Pair) -> None:
    order = tiny.random_order(pair.network.shape)
    network = pair.network.sorted(order)
    close(tiny.elastic_logits(network, pair.dense, TOKENS), tiny.reference_logits(pair.model, TOKENS))
    for widths in (MIXED, HOLLOW):
        architecture = fitted(widths, network)
        expected = pair.masked_logits(architecture, order)
        assert not torch.allclose(expected, pair.masked_logits(architecture), atol=1e-3)
        close(tiny.elastic_logits(network, architecture, TOKENS), expected)


@pytest.mark.parametrize("name", ["llama", "llama-biased", "qwen2-tied-mha", "qwen3-biased"])
def test_the_sliced_state_run_by_hand_gives_the_same_logits(name: str, tiny_folder: TinyFolder) -> None:
    variant = tiny.VARIANTS[name]
    folder = tiny_folder(variant.family, **variant.options)
    config = tiny.load(folder).config
    network = tiny.elastic_of(folder, tiny.random_order(tiny.network_of(folder).shape))
    tokens = TOKENS[:1, :9]
    for architecture in (network.shape.dense(), fitted(MIXED, network), fitted(HOLLOW, network)):
        by_hand = run_by_hand(network.sliced_state(architecture), config, tokens[0].tolist())
        close(tiny.elastic_logits(network, architecture, tokens)[0], by_hand.float())


def test_the_sliced_state_holds_the_parameters_that_are_counted(pair: Pair) -> None:
    shape = pair.network.shape
    generator = torch.Generator().manual_seed(3)
    architectures = [fitted(MIXED, pair.network), fitted(ZERO_FACTORS, pair.network), shape.dense()]
    architectures += [tiny.random_architecture(shape, generator) for _ in range(10)]
    for architecture in architectures:
        state = pair.network.sliced_state(architecture)
        decoder = {name: tensor for name, tensor in state.items() if name.startswith("model.layers.")}
        assert sum(tensor.numel() for tensor in decoder.values()) == architecture.kept_parameters(shape)
        others = {"model.embed_tokens.weight", "model.norm.weight"}
        others |= set() if shape.tied_embeddings else {"lm_head.weight"}
        assert state.keys() - decoder.keys() == others
        for layer, width in enumerate(architecture.widths):
            parts = {n.split(".")[3] for n in decoder if n.startswith(f"model.layers.{layer}.")}
            names = pair.network.family.sublayers
            there = {"attention": width.has_attention, "mlp": width.has_mlp}
            assert parts == {name for kind in there if there[kind] for name in names[kind]}


def test_the_dense_sliced_state_is_the_checkpoint(pair: Pair) -> None:
    expected = dict(pair.model.state_dict())
    if pair.network.shape.tied_embeddings:
        del expected["lm_head.weight"]
    found = pair.network.sliced_state(pair.dense)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_units_are_put_back_to_the_last_digit(tiny_folder: TinyFolder) -> None:
    folder = tiny_folder("llama", **tiny.VARIANTS["llama-biased"].options)
    back = tiny.elastic_of(folder).as_in_checkpoint().layers
    dense = tiny.network_of(folder).layers
    assert len(back) == len(dense)
    for ours, theirs in zip(back, dense, strict=True):
        for field in dataclasses.fields(theirs):
            found, expected = getattr(ours, field.name), getattr(theirs, field.name)
            assert found is None if expected is None else found.equal(expected), field.name


@pytest.mark.parametrize("name", ["llama-biased", "llama-tied", "qwen3"])
def test_whatever_dtype_is_loaded_the_files_are_read_again_exactly(
    name: str, tiny_folder: TinyFolder
) -> None:
    variant = tiny.VARIANTS[name]
    folder = tiny_folder(variant.family, **variant.options)
    expected = tiny.elastic_of(folder)
    exact = ElasticNetwork.exact(tiny.load(folder, torch.bfloat16), expected.order, tiny.CPU)
    states = (network.sliced_state(tiny.MIXED) for network in (exact, expected))
    found, wanted = states
    assert found.keys() == wanted.keys()
    assert all(found[name].equal(wanted[name]) for name in wanted)
    rounded = exact.sliced_state(tiny.MIXED, dtype=torch.float16)
    assert all(rounded[name].equal(wanted[name].half()) for name in wanted)


def test_one_layer_is_held_at_a_time() -> None:
    made: list[int] = []

    def make(index: int) -> Any:
        made.append(index)
        return index

    layers: Any = OneAtATime(3, make)
    assert [layers[0], layers[0], layers[1], layers[0]] == [0, 0, 1, 0]
    assert made == [0, 1, 0]
    assert len(layers) == 3
    assert list(layers) == [0, 1, 2]
    assert layers[1:] == [1, 2]


def test_a_sliced_state_shares_no_memory_with_the_network(biased: Pair) -> None:
    state = biased.network.sliced_state(biased.dense)
    before = tiny.elastic_logits(biased.network, biased.dense, TOKENS)
    for tensor in state.values():
        tensor.zero_()
    assert torch.equal(tiny.elastic_logits(biased.network, biased.dense, TOKENS), before)


def test_trying_an_architecture_copies_no_weight(biased: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    network = biased.network
    own = {
        tensor.untyped_storage().data_ptr()
        for layer in network.layers
        for tensor in vars(layer).values()
        if tensor is not None
    }
    own.add(network.head.untyped_storage().data_ptr())
    used: list[int] = []
    linear = F.linear

    def spy(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        used.append(weight.untyped_storage().data_ptr())
        return linear(x, weight, bias)

    monkeypatch.setattr(F, "linear", spy)
    for widths in (MIXED, HOLLOW, [[2, 3, 64]] * 4):
        tiny.elastic_logits(network, Architecture.from_json(widths), TOKENS)
    assert len(used) > 30
    assert set(used) <= own


@pytest.mark.parametrize("biased_rows", [False, True])
def test_parts_of_groups_are_a_view_of_whole_groups(biased_rows: bool) -> None:
    """What a GPU computes is what a CPU computes."""
    weight, bias = torch.randn(3, 8, 6), torch.randn(3, 8) if biased_rows else None
    x = torch.randn(2, 5, 6)
    for groups in (1, 2, 3):
        for rows in (2, 5, 8):
            found = [grouped_rows(x, weight, bias, groups, rows, whole=whole) for whole in (False, True)]
            assert found[0].shape == (2, 5, groups, rows)
            torch.testing.assert_close(found[0], found[1])


def test_on_the_cpu_the_network_is_the_checkpoint_itself(tiny_folder: TinyFolder) -> None:
    loaded = tiny.load(tiny_folder("llama"))
    network = DenseNetwork(loaded, tiny.CPU)
    assert network.layers[2].q.data_ptr() == loaded.state["model.layers.2.self_attn.q_proj.weight"].data_ptr()
    assert network.layers[3].down.data_ptr() == loaded.state["model.layers.3.mlp.down_proj.weight"].data_ptr()


def test_log_likelihoods_are_read_at_the_asked_places_in_any_chunk(biased: Pair) -> None:
    batch = tiny.causal(TOKENS)
    architecture = Architecture.from_json(MIXED)
    logits = biased.masked_logits(architecture)
    expected = [
        float(logits[row, place].log_softmax(-1)[TOKENS[row, place + 1]])
        for row in range(TOKENS.shape[0])
        for place in range(TOKENS.shape[1] - 1)
    ]
    with torch.inference_mode():
        close(biased.network.log_likelihoods(architecture, batch), torch.tensor(expected))
        hidden, _ = biased.network.hidden_states(architecture, batch)
        for chunk in (1, 7, 1000):
            close(biased.network.read(hidden, batch, chunk), torch.tensor(expected))


def test_starting_from_a_kept_state_is_running_through(biased: Pair) -> None:
    architecture, batch = Architecture.from_json(MIXED), tiny.causal(TOKENS)
    with torch.inference_mode():
        whole, kept = biased.network.hidden_states(architecture, batch, keep={0, 1, 3})
        assert kept.keys() == {0, 1, 3}
        for depth, state in kept.items():
            resumed, _ = biased.network.hidden_states(architecture, batch, depth, state)
            assert torch.equal(resumed, whole)


@pytest.mark.parametrize("window", [1, 5, 23, 24])
def test_text_beyond_an_attention_window_is_run_as_the_model_runs_it(
    tiny_folder: TinyFolder, window: int
) -> None:
    folder = tiny_folder("mistral", sliding_window=window)
    network, dense = tiny.network_of(folder), tiny.network_of(folder).shape.dense()
    found = tiny.elastic_logits(network, dense, TOKENS)
    close(found, tiny.reference_logits(tiny.reference(folder), TOKENS))
    plain = tiny.network_of(tiny_folder("mistral", sliding_window=None))
    assert torch.equal(found, tiny.elastic_logits(plain, dense, TOKENS)) == (window >= TOKENS.shape[1])


def test_in_bfloat16_the_network_follows_transformers(tiny_folder: TinyFolder) -> None:
    folder = tiny_folder("qwen2")
    model = tiny.reference(folder).to(torch.bfloat16)
    network = tiny.network_of(folder, torch.bfloat16)
    found = tiny.elastic_logits(network, network.shape.dense(), TOKENS)
    expected = tiny.reference_logits(model, TOKENS)
    assert found.dtype == expected.dtype == torch.bfloat16
    assert float((found - expected).float().abs().mean()) < 0.02 * float(expected.float().std())


@given(
    st.lists(st.integers(0, 1), min_size=5, max_size=5), st.lists(st.integers(0, 1), min_size=5, max_size=5)
)
def test_common_prefix_counts_equal_leading_layers(a: list[int], b: list[int]) -> None:
    widths = [[LayerWidth(1, 1, c) for c in side] for side in (a, b)]
    expected = max(n for n in range(6) if a[:n] == b[:n])
    assert common_prefix(*widths) == expected
