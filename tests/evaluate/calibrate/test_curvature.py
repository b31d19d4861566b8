"""Curvature: gradients and changes found again with transformers' own model and explicit projections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stages.architecture import Kind, Site
from stages.evaluate.calibrate import curvature, statistics
from stages.evaluate.network.batch import Batch
from stages.evaluate.network.elastic import ElasticNetwork
from stages.evaluate.network.repair import NOTHING_REPAIRED, Repair
from stages.sample.space import Option, options
from tests import tiny
from tests.conftest import TinyFolder

TOKENS = tiny.random_tokens(3, 40)
BATCH = tiny.causal(TOKENS)
CALIBRATION = [tiny.causal(tiny.random_tokens(rows=6, length=48, seed=seed)) for seed in (3, 4)]


def repaired(folder: Path, network: ElasticNetwork) -> Repair:
    return tiny.repair_of(network, dict(statistics.gather(tiny.network_of(folder), CALIBRATION)), 0.01)


def seen_in_reference(model: Any, module: Any, last: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (T, n) of an output projection, and gradients (T, D) of the summed loss by what is added.

    That is the output of the projection, or of the norm behind it, `last`.
    """
    seen: dict[str, torch.Tensor] = {}

    def keep_output(_: Any, __: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        seen.update(y=output)

    handles = [
        module.register_forward_hook(lambda _, inputs, __: seen.update(x=inputs[0].detach())),
        last.register_forward_hook(keep_output),
    ]
    logits = model(TOKENS).logits[:, :-1]
    torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), TOKENS[:, 1:].flatten(), reduction="sum"
    ).backward()
    for handle in handles:
        handle.remove()
    assert seen["y"].grad is not None
    return seen["x"].flatten(0, 1), seen["y"].grad.flatten(0, 1)


def change(
    network: ElasticNetwork,
    repair: Repair,
    site: Site,
    option: Option,
    x: torch.Tensor,
    module: Any,
    norm: Any,
) -> torch.Tensor:
    """What the site adds (T, D) less what it added; `norm` is what stands behind the projection."""
    dense = network.shape.widths[site.layer]
    if site.kind is Kind.MLP:
        width = dense._replace(channels=option.width[0])
    else:
        width = dense._replace(kv_groups=option.width[0], heads_per_group=option.width[1])
    before: torch.Tensor = norm(module(x))
    if not width.keeps(site.kind):
        return -before
    if site.kind is Kind.MLP:
        kept = x[:, : width.channels]
    else:
        by_head = x.unflatten(-1, (dense.kv_groups, dense.heads_per_group, -1))
        kept = by_head[:, : width.kv_groups, : width.heads_per_group].flatten(1)
    bias = 0.0 if module.bias is None else module.bias
    after: torch.Tensor = norm(kept @ network.projection(site, width, repair).T + bias)
    return after - before


@pytest.mark.parametrize("repairs", [False, True], ids=["plain", "repaired"])
@pytest.mark.parametrize(
    "name",
    [
        "llama-biased",
        "llama-tied",
        "llama-mha",
        "qwen2",
        "qwen3",
        "granite-biased-tied",
        "gemma3-biased-untied",
        "olmo3-tied",
        *tiny.PRUNED_BEFORE,
    ],
)
def test_the_rise_at_a_token_is_its_gradient_times_the_change_of_the_output(
    name: str, repairs: bool, tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = (tiny.VARIANTS | tiny.PRUNED_BEFORE)[name]
    folder = tiny_folder(variant.family, **variant.options)
    network, model = tiny.elastic_of(folder), tiny.reference(folder)
    repair = repaired(folder, network) if repairs else NOTHING_REPAIRED
    monkeypatch.setattr(curvature, "_drawn", lambda network, last, batch, seed: batch.targets)
    widths = {site: options(network.shape, site, 8)[1:] for site in network.shape.sites()}
    found = curvature.token_rises(network, repair, BATCH, widths, 0)
    for site in network.shape.sites():
        layer = model.model.layers[site.layer]
        module = layer.self_attn.o_proj if site.kind is Kind.ATTENTION else layer.mlp.down_proj
        name_after = network.family.attention_norm_after
        if site.kind is Kind.MLP:
            name_after = network.family.mlp_norm_after
        norm = getattr(layer, name_after) if name_after else torch.nn.Identity()
        x, gradient = seen_in_reference(model, module, norm if name_after else module)
        with torch.no_grad():
            expected = torch.stack(
                [(gradient * change(network, repair, site, o, x, module, norm)).sum(1) for o in widths[site]],
                1,
            )
        scale = expected.abs().max()
        torch.testing.assert_close(found[site] / scale, expected / scale, rtol=0, atol=2e-4)


def test_a_curve_is_half_the_mean_square_over_all_batches(
    tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = tiny.elastic_of(tiny_folder("llama"))

    def rises(network: ElasticNetwork, repair: Repair, batch: Batch, widths: Any, seed: int) -> Any:
        tokens = batch.tokens.numel()
        return {site: torch.full((tokens, len(widths[site])), 1.0 + seed) for site in network.shape.sites()}

    monkeypatch.setattr(curvature, "token_rises", rises)
    found = curvature.expected_curves(network, NOTHING_REPAIRED, [BATCH, BATCH])
    ratio = found.points[Site(1, Kind.MLP)][0][0]
    expected = 0.5 * TOKENS.numel() * (1 + 4) / (2 * BATCH.targets.numel())
    assert found.damage(Site(1, Kind.MLP), ratio) == pytest.approx(expected)
    assert set(found.points) == set(network.shape.sites())


def test_drawn_tokens_follow_the_predictions_and_the_seed(tiny_folder: TinyFolder) -> None:
    network = tiny.elastic_of(tiny_folder("llama"))
    batch = tiny.causal(tiny.random_tokens(1, 2).expand(4000, -1))  # the same prediction 4,000 times
    with torch.no_grad():
        last, _ = network.hidden_states(network.shape.dense(), batch)
        drawn = [curvature._drawn(network, last, batch, seed) for seed in (0, 0, 1)]
        wanted = network.logits(last[0, 0]).softmax(-1)
    assert drawn[0].equal(drawn[1])
    assert not drawn[0].equal(drawn[2])
    counts = torch.bincount(drawn[0], minlength=tiny.VOCABULARY) / 4000
    assert (counts - wanted).abs().max() < 4 * (0.25 / 4000) ** 0.5


def test_a_small_cut_costs_what_is_expected(tiny_folder: TinyFolder) -> None:
    """The rise of the network's own cross-entropy: its KL from the dense one, to second order."""
    network = tiny.elastic_of(tiny_folder("llama"))
    shape, index = network.shape, 2
    site = Site(index, Kind.MLP)
    network.layers[index].down.mul_(0.05)  # so that cutting the site is a small change
    batches = [tiny.causal(tiny.random_tokens(8, 64, seed=seed)) for seed in range(6)]
    expected = curvature.expected_curves(network, NOTHING_REPAIRED, batches)
    gone = [list(width) for width in shape.dense().to_json()]
    gone[index][2] = 0
    total = predictions = 0.0
    for batch in batches:
        with torch.no_grad():
            dense, cut = (
                network.logits(network.hidden_states(a, batch)[0].flatten(0, 1)[batch.at]).log_softmax(-1)
                for a in (shape.dense(), type(shape.dense()).from_json(gone))
            )
        total += float((dense.exp() * (dense - cut)).sum())
        predictions += len(batch.at)
    assert expected.damage(site, 1.0) == pytest.approx(total / predictions, rel=0.25)
