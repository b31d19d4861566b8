"""Architectures and parameter counts, against transformers' own models and against arithmetic."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from stages.architecture import Architecture, Kind, LayerWidth, ModelShape, Site
from stages.families import describe
from tests.small import SMALL, SMOLLM2, architectures_of, shapes

FAST = settings(deadline=None, max_examples=60)


@st.composite
def shaped(draw: st.DrawFn) -> tuple[ModelShape, Architecture]:
    """A model that may have been pruned before, and an architecture within it."""
    shape = draw(shapes(unlike=True))
    found = draw(architectures_of(shape))
    widths = zip(found.widths, shape.widths, strict=True)
    return shape, Architecture(tuple(LayerWidth(*map(min, *pair)) for pair in widths))


@FAST
@given(shaped())
def test_json_gives_the_same_architecture_back(case: tuple[ModelShape, Architecture]):
    shape, architecture = case
    back = Architecture.from_json(json.loads(json.dumps(architecture.to_json())))
    assert back == architecture
    assert hash(back) == hash(architecture)
    assert back.id == architecture.id
    back.check(shape)


def test_every_way_to_drop_the_attention_is_one_architecture():
    gone = Architecture((LayerWidth(0, 0, 32),))
    for given_as in (LayerWidth(0, 3, 32), LayerWidth(2, 0, 32)):
        architecture = Architecture((given_as,))
        assert architecture == gone
        assert architecture.id == gone.id
        assert architecture.to_json() == [[0, 0, 32]]


def test_id_is_stable():
    # printf '[[3,3,1536],[0,0,0]]' | sha256sum: journals and MLflow keep these ids for good.
    assert Architecture((LayerWidth(3, 3, 1536), LayerWidth(0, 0, 0))).id == "9edda124c9ab"


@FAST
@given(shaped(), st.data())
def test_id_changes_with_any_width(case: tuple[ModelShape, Architecture], data: st.DataObject):
    shape, architecture = case
    widths = architecture.to_json()
    layer = data.draw(st.integers(0, shape.layers - 1))
    part = data.draw(st.integers(0, 2))
    if part < 2 and widths[layer][:2] == [0, 0]:
        widths[layer][:2] = [1, 1]  # one factor alone still drops the attention
    else:
        widths[layer][part] += 1
    assert Architecture.from_json(widths).id != architecture.id
    assert len(architecture.id) == 12


@FAST
@given(shaped())
def test_overall_ratio_is_the_parameter_weighted_mean_of_the_site_ratios(
    case: tuple[ModelShape, Architecture],
):
    shape, architecture = case
    dense = {site: shape.dense_parameters(site) for site in shape.sites()}
    removed = {site: architecture.site_ratio(shape, site) * dense[site] for site in shape.sites()}
    assert architecture.kept_parameters(shape) + sum(removed.values()) == pytest.approx(
        shape.decoder_parameters, abs=1e-6 * shape.decoder_parameters
    )
    assert architecture.overall_ratio(shape) == pytest.approx(sum(removed.values()) / sum(dense.values()))
    assert 0 <= architecture.overall_ratio(shape) <= 1


@FAST
@given(shaped(), st.data())
def test_a_deeper_cut_of_any_width_never_keeps_more(
    case: tuple[ModelShape, Architecture], data: st.DataObject
):
    shape, architecture = case
    widths = architecture.to_json()
    layer = data.draw(st.integers(0, shape.layers - 1))
    part = data.draw(st.integers(0, 2))
    widths[layer][part] = data.draw(st.integers(0, widths[layer][part]))
    cut = Architecture.from_json(widths)
    assert cut.kept_parameters(shape) <= architecture.kept_parameters(shape)
    for site in shape.sites():
        assert cut.site_ratio(shape, site) >= architecture.site_ratio(shape, site)


def test_the_ends():
    dropped = Architecture((LayerWidth(0, 0, 0),) * SMALL.layers)
    assert SMALL.dense().overall_ratio(SMALL) == 0
    assert dropped.overall_ratio(SMALL) == 1
    half_dropped = Architecture((LayerWidth(0, 3, 5), LayerWidth(2, 0, 5)))
    assert [w.has_attention for w in half_dropped.widths] == [False, False]
    assert [w.has_mlp for w in half_dropped.widths] == [True, True]
    assert half_dropped.kept_parameters(SMALL) == 2 * (3 * 24 * 5 + 24)


def test_smollm2_has_its_published_size():
    assert SMOLLM2.total_parameters == 134_515_008


MODELS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"num_key_value_heads": 6}),
    ("llama", {"num_key_value_heads": 2}),
    ("llama", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    ("llama", {"num_key_value_heads": 3, "attention_bias": True}),
    ("llama", {"num_key_value_heads": 6, "mlp_bias": True, "head_dim": 10}),
    ("llama", {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}),
    ("mistral", {"num_key_value_heads": 2}),
    ("qwen2", {"num_key_value_heads": 2}),
    ("qwen2", {"num_key_value_heads": 6, "tie_word_embeddings": True}),
    ("qwen3", {"num_key_value_heads": 3}),
    ("qwen3", {"num_key_value_heads": 3, "attention_bias": True, "tie_word_embeddings": True}),
]


@pytest.mark.parametrize(("family", "options"), MODELS, ids=lambda value: str(value))
def test_counts_are_those_of_transformers(family: str, options: dict[str, Any]):
    settings_ = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "intermediate_size": 70,
        "vocab_size": 130,
        "tie_word_embeddings": False,
    }
    config = AutoConfig.for_model(family, **settings_ | options)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = describe(config.to_dict(), family).shape
    layers = model.model.layers
    assert shape.decoder_parameters == sum(p.numel() for p in layers.parameters())
    assert shape.total_parameters == model.num_parameters()
    norms = {Kind.ATTENTION: layers[0].input_layernorm, Kind.MLP: layers[0].post_attention_layernorm}
    for kind, module in ((Kind.ATTENTION, layers[0].self_attn), (Kind.MLP, layers[0].mlp)):
        own = sum(p.numel() for p in [*module.parameters(), *norms[kind].parameters()])
        assert shape.site_parameters(kind, shape.widest) == own


@pytest.mark.parametrize("biased", [False, True])
def test_a_narrow_model_counts_as_transformers_builds_it(biased: bool):
    """One KV group of two fewer query heads and 20 channels: transformers built with those widths."""
    shape = ModelShape(
        "llama", 2, 48, 2, 3, 8, 70, 130, False, qkv_bias=biased, o_bias=biased, mlp_bias=biased
    )
    config = AutoConfig.for_model(
        "llama",
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=20,
        vocab_size=130,
        attention_bias=biased,
        mlp_bias=biased,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    kept = Architecture((LayerWidth(1, 2, 20),) * 2).kept_parameters(shape)
    assert kept == sum(p.numel() for p in model.model.layers.parameters())


def test_sites_come_in_the_order_of_the_data():
    shape = ModelShape("llama", 2, 8, 1, 1, 8, 8, 10, True)
    assert [str(site) for site in shape.sites()] == ["0.attention", "0.mlp", "1.attention", "1.mlp"]
    assert sorted(shape.sites()) == list(shape.sites())
    assert Site(1, Kind.MLP) in set(shape.sites())


@pytest.mark.parametrize("bad", [[1, 2], [1, 2, 3, 4], [1, 2, -1], [1, 2, 3.0], [1, True, 3], [1, "2", 3]])
def test_bad_widths_are_named_with_their_layer(bad: list[Any]):
    with pytest.raises(ValueError, match=r"layer 1 has widths .*expected .*kv_groups"):
        Architecture.from_json([[1, 2, 3], bad])


def test_an_architecture_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="has 2 layers; the model has 6"):
        Architecture((SMALL.widest,) * 2).check(SMALL)
    for part in range(3):
        widths = SMALL.dense().to_json()
        widths[4][part] += 1
        with pytest.raises(ValueError, match=r"layer 4: .* exceeds"):
            Architecture.from_json(widths).check(SMALL)
    SMALL.dense().check(SMALL)
