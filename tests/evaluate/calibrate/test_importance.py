"""Taylor importance against autograd on transformers' own model, unit by unit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from stages.evaluate.calibrate.importance.taylor import taylor
from stages.evaluate.network.batch import Batch
from stages.evaluate.network.elastic import DenseNetwork
from stages.evaluate.results.scores import UnitScores
from tests import tiny
from tests.conftest import TinyFolder

TOKENS = tiny.random_tokens(3, 16)


def naive_scores(model: Any, rows: torch.Tensor = TOKENS, exponent: int = 1) -> UnitScores:
    """|weight x gradient| of transformers' own loss to a power, one head and one channel at a time."""
    model.zero_grad()
    loss = model(rows, labels=rows).loss * len(rows) / len(TOKENS)  # its share of the mean over all rows
    loss.backward()
    shape, d = tiny.shape_of(model), model.config.head_dim

    def products(module: Any, *names: str) -> list[Any]:
        """Of each projection, row by row; none of what is skipped."""
        there = [getattr(module, f"{name}_proj", None) for name in names]
        weights = [None if projection is None else projection.weight for projection in there]
        return [[] if w is None else (w * w.grad).abs().pow(exponent).tolist() for w in weights]

    heads, kv, channels = [], [], []
    for layer, width in zip(model.model.layers, shape.widths, strict=True):
        groups, per_group, _ = width
        q, k, v, o = products(layer.self_attn, "q", "k", "v", "o")
        gate, up, down = products(layer.mlp, "gate", "up", "down")
        of_heads = []
        for head in range(groups * per_group):
            rows_of = range(head * d, head * d + d)
            of_heads.append(
                sum(sum(q[row]) for row in rows_of) + sum(line[row] for line in o for row in rows_of)
            )
        # Query head n is served by KV group n // per_group.
        heads.append([[of_heads[g * per_group + h] for h in range(per_group)] for g in range(groups)])
        kv.append([sum(sum(k[row]) + sum(v[row]) for row in range(g * d, g * d + d)) for g in range(groups)])
        channels.append([sum(gate[c]) + sum(up[c]) + sum(line[c] for line in down) for c in range(len(gate))])
    return UnitScores.of_layers(shape, heads, kv, channels)


def assert_same_scores(found: UnitScores, expected: UnitScores) -> None:
    for part in ("heads", "groups", "channels"):
        assert getattr(found, part).shape == getattr(expected, part).shape
        np.testing.assert_allclose(getattr(found, part), getattr(expected, part), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    ["llama-biased", "llama-tied", "llama-mha", "qwen2", "qwen3", "llama-mixed", "qwen3-hollow"],
)
def test_scores_are_those_of_autograd(name: str, tiny_folder: TinyFolder) -> None:
    variant = (tiny.VARIANTS | tiny.PRUNED_BEFORE)[name]
    folder = tiny_folder(variant.family, **variant.options)
    expected = naive_scores(tiny.reference(folder))
    network = tiny.network_of(folder)
    assert_same_scores(taylor(network, [tiny.causal(TOKENS)]).of_units(network.shape), expected)
    assert float(np.nanstd(expected.heads)) > 0.01 * float(np.nanmean(expected.heads))


def test_first_order_adds_gradients_over_batches_before_taking_absolutes(tiny_folder: TinyFolder) -> None:
    folder = tiny_folder("llama")
    batches = [tiny.causal(TOKENS[:2]), tiny.causal(TOKENS[2:])]
    assert_same_scores(taylor(tiny.network_of(folder), batches), naive_scores(tiny.reference(folder)))


def test_second_order_adds_squares_over_batches(tiny_folder: TinyFolder) -> None:
    folder = tiny_folder("qwen3")
    parts = [naive_scores(tiny.reference(folder), rows, 2) for rows in (TOKENS[:2], TOKENS[2:])]
    expected = UnitScores.of(
        *(sum(getattr(p, name) for p in parts) / 2 for name in ("heads", "groups", "channels"))
    )
    batches = [tiny.causal(TOKENS[:2]), tiny.causal(TOKENS[2:])]
    assert_same_scores(taylor(tiny.network_of(folder), batches, order=2), expected)


def test_gradients_of_one_layer_are_held_and_none_is_left_behind(
    tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny.load(tiny_folder("llama", attention_bias=True))
    network = DenseNetwork(loaded, tiny.CPU)
    weights = [t for layer in network.layers for t in vars(layer).values() if t is not None]
    before = [weight.clone() for weight in weights]
    largest = 0
    run_layer = network.run_layer

    def watching(*arguments: Any, **options: Any) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, sum(w.grad is not None for w in weights))
        return run_layer(*arguments, **options)

    monkeypatch.setattr(network, "run_layer", watching)
    taylor(network, [tiny.causal(TOKENS[:2]), tiny.causal(TOKENS[2:])])
    monkeypatch.undo()
    assert largest == 7  # one layer's gradients over all batches, of 28 weights
    assert all(w.grad is None and not w.requires_grad for w in weights)
    assert all(t.grad is None and not t.requires_grad for t in loaded.state.values())
    assert all(torch.equal(w, b) for w, b in zip(weights, before, strict=True))
    hidden, _ = network.hidden_states(network.shape.dense(), tiny.causal(TOKENS))
    assert not hidden.requires_grad


def test_a_failure_leaves_no_gradient_either(
    tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = tiny.network_of(tiny_folder("llama"))

    output = network.output

    def fails(*arguments: Any, **options: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("out of memory")
        return output(*arguments, **options)

    monkeypatch.setattr(network, "output", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        taylor(network, [tiny.causal(TOKENS)])
    assert not any(t.requires_grad for layer in network.layers for t in vars(layer).values() if t is not None)


def test_the_grouping_of_predictions_changes_no_score(
    tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, batches = tiny.network_of(tiny_folder("llama")), [tiny.causal(TOKENS)]
    whole = taylor(network, batches)
    monkeypatch.setattr("stages.evaluate.calibrate.importance.taylor.GRADIENTS_AT_ONCE", 7)  # of 45
    assert_same_scores(taylor(network, batches), whole)


def test_scores_do_not_depend_on_the_order_of_the_calibration_rows(tiny_folder: TinyFolder) -> None:
    network = tiny.network_of(tiny_folder("qwen3"))
    one, other = taylor(network, [tiny.causal(TOKENS)]), taylor(network, [tiny.causal(TOKENS.flip(0))])
    np.testing.assert_allclose(one.heads, other.heads, rtol=1e-4, atol=1e-6)
    assert np.array_equal(taylor(network, [tiny.causal(TOKENS)]).heads, one.heads)


def test_pruning_the_least_important_hurts_less_than_the_most(tiny_folder: TinyFolder) -> None:
    """The scores' purpose: a loss changes less when the units that come last go."""
    folder = tiny_folder("llama")
    batch: Batch = tiny.causal(TOKENS)
    found = taylor(tiny.network_of(folder), [batch])
    changes = []
    for sign in (1, -1):
        signed = UnitScores(*(sign * part for part in (found.heads, found.groups, found.channels)))
        network = tiny.elastic_of(folder, signed.order())
        dense = network.shape.dense()
        cut = type(dense)(tuple(width._replace(channels=56) for width in dense.widths))
        with torch.inference_mode():
            change = network.log_likelihoods(cut, batch) - network.log_likelihoods(dense, batch)
        changes.append(float(change.square().mean()))
    assert changes[0] < 0.5 * changes[1]
