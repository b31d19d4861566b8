"""An exported folder is a source like any other: run, sorted, cut further and exported again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.architecture import Architecture, LayerWidth
from stages.evaluate.calibrate import statistics
from stages.evaluate.calibrate.importance import CalibrationData
from stages.evaluate.calibrate.importance.control import RANDOM
from stages.evaluate.calibrate.importance.magnitude import MAGNITUDE
from stages.evaluate.calibrate.importance.moments import ACTIVATION, FLUCTUATION, WANDA
from stages.evaluate.calibrate.importance.taylor import FIRST_ORDER, SECOND_ORDER
from stages.evaluate.network.decoder import Decoder
from stages.export.weights.huggingface import write_folder
from tests import tiny
from tests.conftest import TinyFolder

TOKENS = tiny.random_tokens()
WIDTHS = {"mixed": tiny.MIXED, "hollow": tiny.HOLLOW}


def halved(network: Decoder) -> Architecture:
    """About half of what each site has; every third layer loses its attention, and one its MLP."""

    def cut(layer: int, width: LayerWidth) -> LayerWidth:
        groups, heads, channels = (-(-size // 2) for size in width)
        return LayerWidth(0 if layer % 3 == 2 else groups, heads, 0 if layer == 0 else channels)

    return Architecture(tuple(cut(*pair) for pair in enumerate(network.shape.widths)))


def exported_again(network: Decoder, folder: Path, source: Path, architecture: Architecture) -> Path:
    """What a stage would write of the network at an architecture."""
    loaded = tiny.load(source)
    state = network.sliced_state(architecture)
    write_folder(
        folder, state, loaded.config, architecture, network.shape, loaded.tokenizer,
        loaded.generation_config, torch.float32,
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("name", tiny.EXPORTED)
def test_it_runs_as_it_was_exported_and_is_pruned_further(
    name: str, widths: str, tiny_folder: TinyFolder, tmp_path: Path
) -> None:
    variant = tiny.EXPORTED[name]
    source = tiny_folder(variant.family, **variant.options, pruned=WIDTHS[widths].to_json())
    dense = tiny.network_of(source)
    model = tiny.reference(source)
    shape = dense.shape
    assert shape.dense() == tiny.fitted(
        WIDTHS[widths], tiny.shape_of(tiny.random_model(variant.family, **variant.options))
    )
    assert shape.total_parameters == sum(p.numel() for p in model.parameters())
    expected = tiny.reference_logits(model, TOKENS)
    tiny.assert_same(tiny.elastic_logits(dense, shape.dense(), TOKENS), expected)
    network = dense.sorted(tiny.random_order(shape))
    tiny.assert_same(tiny.elastic_logits(network, shape.dense(), TOKENS), expected)
    tiny.assert_same(tiny.elastic_logits(network.as_in_checkpoint(), shape.dense(), TOKENS), expected)
    architecture = halved(network)
    again = exported_again(network, tmp_path / "again", source, architecture)
    view = tiny.elastic_logits(network, architecture, TOKENS)
    tiny.assert_same(tiny.reference_logits(tiny.exported(again), TOKENS), view)
    assert not torch.allclose(view, expected, atol=0.1)
    third = tiny.network_of(again)
    assert third.shape.dense() == architecture
    tiny.assert_same(tiny.elastic_logits(third, architecture, TOKENS), view)
    whole = exported_again(dense, tmp_path / "whole", source, shape.dense())
    tiny.assert_same(tiny.reference_logits(tiny.exported(whole), TOKENS), expected)
    assert (whole / "config.json").read_text() == (source / "config.json").read_text()


def test_pruned_further_to_layers_alike_it_is_a_plain_folder(tiny_folder: TinyFolder, tmp_path: Path) -> None:
    source = tiny_folder("llama", pruned=[[2, 3, 64], [1, 2, 33], [2, 2, 40], [0, 0, 0]])
    network = tiny.elastic_of(source)
    architecture = Architecture.from_json([[1, 2, 32]] * 3 + [[0, 0, 0]])
    folder = exported_again(network, tmp_path / "plain", source, architecture)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert not {"auto_map", "per_layer_config", "base_model_type", "sublayers"} & config.keys()
    loaded = tiny.network_of(folder)
    assert loaded.shape.unlike == ()
    found = tiny.elastic_logits(loaded, loaded.shape.dense(), TOKENS)
    tiny.assert_same(found, tiny.elastic_logits(network, architecture, TOKENS))


@pytest.mark.parametrize(
    "importance",
    [RANDOM, MAGNITUDE, ACTIVATION, WANDA, FLUCTUATION, FIRST_ORDER, SECOND_ORDER],
    ids=["random", "magnitude", "activation", "wanda", "fluctuation", "taylor", "taylor-second"],
)
@pytest.mark.parametrize("name", ["llama-mixed", "llama-hollow", "gemma3-mixed"])
def test_every_importance_orders_what_is_there(importance: Any, name: str, tiny_folder: TinyFolder) -> None:
    variant = tiny.PRUNED_BEFORE[name]
    network = tiny.network_of(tiny_folder(variant.family, **variant.options))
    batches, shape = [tiny.causal(TOKENS)], network.shape
    data = CalibrationData(network, batches, lambda: statistics.gather(network, batches))
    scores = importance.score(data).of_units(shape)
    assert scores.finite(shape)
    order = scores.order()
    for layer, (groups, heads, channels) in enumerate(shape.widths):
        assert sorted(order.groups[layer, :groups]) == list(range(groups))
        assert all(sorted(row) == list(range(heads)) for row in order.heads[layer, :groups, :heads])
        assert sorted(order.channels[layer, :channels]) == list(range(channels))
    expected = tiny.elastic_logits(network, shape.dense(), TOKENS)
    tiny.assert_same(tiny.elastic_logits(network.sorted(order), shape.dense(), TOKENS), expected)
