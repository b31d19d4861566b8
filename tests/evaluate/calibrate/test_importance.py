"""Taylor importance against autograd on transformers' own model, unit by unit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.evaluate.calibrate.importance import UnitScores
from stages.evaluate.calibrate.taylor import taylor
from stages.evaluate.network.batch import Batch
from stages.evaluate.network.elastic import ElasticNetwork
from stages.files import InputError
from tests import tiny
from tests.conftest import TinyFolder

TOKENS = tiny.random_tokens(3, 16)


def naive_scores(model: Any, rows: torch.Tensor = TOKENS, exponent: int = 1) -> UnitScores:
    """|weight x gradient| of transformers' own loss to a power, one head and one channel at a time."""
    model.zero_grad()
    loss = model(rows, labels=rows).loss * len(rows) / len(TOKENS)  # its share of the mean over all rows
    loss.backward()
    config = model.config
    groups, d = config.num_key_value_heads, config.head_dim
    per_group = config.num_attention_heads // groups
    heads, kv, channels = [], [], []
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        q, k, v, o, gate, up, down = (
            (projection.weight * projection.weight.grad).abs().pow(exponent).tolist()
            for projection in (
                *(attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj),
                *(mlp.gate_proj, mlp.up_proj, mlp.down_proj),
            )
        )
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
    return UnitScores(torch.tensor(heads), torch.tensor(kv), torch.tensor(channels))


def assert_same_scores(found: UnitScores, expected: UnitScores) -> None:
    for part in ("heads", "groups", "channels"):
        assert getattr(found, part).shape == getattr(expected, part).shape
        torch.testing.assert_close(getattr(found, part), getattr(expected, part), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["llama-biased", "llama-tied", "llama-mha", "qwen2", "qwen3"])
def test_scores_are_those_of_autograd(name: str, tiny_folder: TinyFolder) -> None:
    variant = tiny.VARIANTS[name]
    folder = tiny_folder(variant.family, **variant.options)
    expected = naive_scores(tiny.reference(folder))
    assert_same_scores(taylor(tiny.network_of(folder), [tiny.causal(TOKENS)]), expected)
    assert float(expected.heads.std()) > 0.01 * float(expected.heads.mean())


def test_first_order_adds_gradients_over_batches_before_taking_absolutes(tiny_folder: TinyFolder) -> None:
    folder = tiny_folder("llama")
    batches = [tiny.causal(TOKENS[:2]), tiny.causal(TOKENS[2:])]
    assert_same_scores(taylor(tiny.network_of(folder), batches), naive_scores(tiny.reference(folder)))


def test_second_order_adds_squares_over_batches(tiny_folder: TinyFolder) -> None:
    folder = tiny_folder("qwen3")
    parts = [naive_scores(tiny.reference(folder), rows, 2) for rows in (TOKENS[:2], TOKENS[2:])]
    expected = UnitScores(
        *(sum(getattr(p, name) for p in parts) / 2 for name in ("heads", "groups", "channels"))
    )
    batches = [tiny.causal(TOKENS[:2]), tiny.causal(TOKENS[2:])]
    assert_same_scores(taylor(tiny.network_of(folder), batches, order=2), expected)


def test_gradients_of_one_layer_are_held_and_none_is_left_behind(
    tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny.load(tiny_folder("llama", attention_bias=True))
    network = ElasticNetwork(loaded, tiny.CPU)
    weights = [t for layer in network.layers for t in vars(layer).values() if t is not None]
    before = [weight.clone() for weight in weights]
    largest = 0
    run_layer = network.run_layer

    def watching(*arguments: Any, **options: Any) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, sum(w.grad is not None for w in weights))
        return run_layer(*arguments, **options)

    monkeypatch.setattr(network, "run_layer", watching)
    scores = taylor(network, [tiny.causal(TOKENS[:2]), tiny.causal(TOKENS[2:])])
    monkeypatch.undo()
    assert largest == 7  # one layer's gradients over all batches, of 28 weights
    assert all(w.grad is None and not w.requires_grad for w in weights)
    assert all(t.grad is None and not t.requires_grad for t in loaded.state.values())
    assert not any(t.requires_grad for t in (scores.heads, scores.groups, scores.channels))
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
    monkeypatch.setattr("stages.evaluate.calibrate.taylor.PREDICTIONS_AT_ONCE", 7)  # of 45
    assert_same_scores(taylor(network, batches), whole)


def test_scores_do_not_depend_on_the_order_of_the_calibration_rows(tiny_folder: TinyFolder) -> None:
    network = tiny.network_of(tiny_folder("qwen3"))
    one, other = taylor(network, [tiny.causal(TOKENS)]), taylor(network, [tiny.causal(TOKENS.flip(0))])
    torch.testing.assert_close(one.heads, other.heads, rtol=1e-4, atol=1e-6)
    assert taylor(network, [tiny.causal(TOKENS)]).heads.equal(one.heads)


def test_units_come_by_falling_score() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = UnitScores(*(torch.rand(*size, generator=generator) for size in ((3, 4, 2), (3, 4), (3, 11))))
    order = scores.order()
    for layer in range(3):
        totals = [float(scores.groups[layer, g] + scores.heads[layer, g].sum()) for g in range(4)]
        groups = sorted(range(4), key=lambda g: -totals[g])
        assert order.groups[layer].tolist() == groups
        for rank, group in enumerate(groups):
            of_group = scores.heads[layer, group].tolist()
            assert order.heads[layer, rank].tolist() == sorted(range(2), key=lambda h: -of_group[h])
        of_layer = scores.channels[layer].tolist()
        assert order.channels[layer].tolist() == sorted(range(11), key=lambda c: -of_layer[c])


def test_ties_keep_the_order_of_the_checkpoint() -> None:
    scores = UnitScores(
        heads=torch.tensor([[[1.0, 2.0, 1.0, 2.0], [2.0, 1.0, 1.0, 2.0], [5.0, 5.0, 5.0, 5.0]]]),
        groups=torch.tensor([[3.0, 3.0, 0.0]]),
        channels=torch.tensor([[0.0, 1.0] * 40]),
    )
    order = scores.order()
    assert order.groups.tolist() == [[2, 0, 1]]
    assert order.heads.tolist() == [[[0, 1, 2, 3], [1, 3, 0, 2], [0, 3, 1, 2]]]
    assert order.channels[0].tolist() == [*range(1, 80, 2), *range(0, 80, 2)]


def test_pruning_the_least_important_hurts_less_than_the_most(tiny_folder: TinyFolder) -> None:
    """The scores' purpose: a loss changes less when the units that come last go."""
    folder = tiny_folder("llama")
    batch: Batch = tiny.causal(TOKENS)
    found = taylor(tiny.network_of(folder), [batch])
    changes = []
    for sign in (1, -1):
        network = tiny.network_of(folder)
        network.sort(UnitScores(*(sign * t for t in (found.heads, found.groups, found.channels))).order())
        dense = network.shape.dense()
        cut = type(dense)(tuple(width._replace(channels=56) for width in dense.widths))
        with torch.inference_mode():
            change = network.log_likelihoods(cut, batch) - network.log_likelihoods(dense, batch)
        changes.append(float(change.square().mean()))
    assert changes[0] < 0.5 * changes[1]


def scores_of_three() -> UnitScores:
    generator = torch.Generator().manual_seed(0)
    return UnitScores(*(torch.rand(*size, generator=generator) for size in ((3, 2, 3), (3, 2), (3, 11))))


def test_saved_scores_come_back_under_their_key_alone(tmp_path: Path) -> None:
    path, scores = tmp_path / "new" / "importance.safetensors", scores_of_three()
    assert UnitScores.load(path, "a") is None
    scores.save(path, "a")
    found = UnitScores.load(path, "a")
    assert found is not None
    assert found.heads.equal(scores.heads)
    assert found.groups.equal(scores.groups)
    assert found.channels.equal(scores.channels)
    assert found.digest == scores.digest
    assert UnitScores.load(path, "b") is None
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_saved_scores_are_readable_as_the_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        scores_of_three().save(tmp_path / "importance.safetensors", "a")
    finally:
        os.umask(before)
    assert (tmp_path / "importance.safetensors").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("keep", [0, 5, 100, -3])
def test_damaged_scores_are_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "importance.safetensors"
    scores_of_three().save(path, "a")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"importance\.safetensors is damaged.*delete it and run `dvc repro"):
        UnitScores.load(path, "a")


def test_the_digest_is_that_of_the_order() -> None:
    scores = scores_of_three()
    louder = UnitScores(scores.heads * 2, scores.groups * 2, scores.channels * 2)
    other = UnitScores(scores.heads, scores.groups, scores.channels.flip(-1))
    assert louder.digest == scores.digest != other.digest
