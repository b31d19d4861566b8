"""The work of calibrating: conversations, scores, statistics, damage curves, and both repairs."""

from __future__ import annotations

import math
from collections.abc import Iterable

from stages.architecture import Architecture, Kind, ModelShape
from stages.config.choices import IMPORTANCES, REPAIRS
from stages.config.params import Params
from stages.evaluate.calibrate import statistics
from stages.evaluate.calibrate.conversations import ANSWER, AT_ONCE, HELD_OUT, TURN
from stages.evaluate.calibrate.whitening import elements, orders_of, prefix_size
from stages.evaluate.network.repair import RepairMethod
from stages.flops import head_flops, token_flops
from stages.plan.step import GRADIENT, OWN_S, Step

CHAT_LAYER_S, CHAT_ON_CPU = 2e-3, 3.0
"""What writing conversations takes: on a GPU seconds a call of a layer, of an 8B model's shape on an H200; on
a CPU times its FLOPs at the rate of a forward pass, of SmolLM2-135M on two cores."""


def conversations(params: Params, shape: ModelShape, on_gpu: bool) -> Step:
    """What a model with a chat template writes to calibrate on, each conversation of the most tokens."""
    section, each = params.evaluate.calibration, TURN + ANSWER
    count = math.ceil(section.conversations * section.sequence_length / each) + HELD_OUT
    what = "write conversations"
    if on_gpu:
        calls = math.ceil(count / AT_ONCE) * each * shape.layers
        return Step("evaluate", what, cpu_s=calls * CHAT_LAYER_S)
    written = token_flops(shape, shape.dense().widths, each / 2) + head_flops(shape, 1)
    return Step("evaluate", what, flops=CHAT_ON_CPU * count * each * written)


def calibration(params: Params, shape: ModelShape) -> Step:
    """Scores and statistics: passes over the calibration text, and Gram matrices."""
    section = params.evaluate
    tokens = section.calibration.tokens
    forward = tokens * token_flops(shape, shape.dense().widths, section.calibration.sequence_length / 2)
    flops, flops32, layers = 0.0, 0.0, 0
    if IMPORTANCES[section.importance].by_gradient:
        flops += GRADIENT * (forward + head_flops(shape, tokens))
        layers += GRADIENT * shape.layers
    if needs_statistics(params):
        moments = _moments(params, shape)
        passes = 1 if _kept(params, shape) or not by_moments(params) or not solves_projections(params) else 2
        flops += passes * moments.flops
        flops32 += passes * moments.flops32
        layers += passes * moments.layers
    what = f"score units by {section.importance}"
    return Step("evaluate", what, tokens=tokens, flops=flops, flops32=flops32, layers=layers)


def _moments(params: Params, shape: ModelShape) -> Step:
    """One pass over the calibration text that sums every site's Gram matrix."""
    section = params.evaluate.calibration
    tokens = section.tokens
    forward = tokens * token_flops(shape, shape.dense().widths, section.sequence_length / 2)
    grams = tokens * sum(2.0 * elements(shape, site) ** 2 for site in shape.sites())
    return Step("", "", flops=forward, flops32=grams, layers=shape.layers)


def _kept(params: Params, shape: ModelShape) -> bool:
    """Whether the cache holds the statistics, so that later stages read them."""
    return statistics.size_bytes(shape) <= params.evaluate.cache_mb * 2**20


def curvature(params: Params, shape: ModelShape) -> Step:
    """Damage curves by curvature (`calibrate.curvature`): a backward pass, and the changes at every width."""
    section = params.evaluate.calibration
    tokens = min(params.evaluate.curvature_tokens, section.tokens)
    forward = tokens * token_flops(shape, shape.dense().widths, section.sequence_length / 2)
    each = 0.0
    for site in shape.sites():
        n, orders = elements(shape, site), len(list(orders_of(shape, site)))
        each += 2.0 * shape.hidden * n + 3.0 * n**2 * orders * solves_projections(params)
    flops = GRADIENT * (forward + head_flops(shape, tokens))
    return Step(
        "evaluate", "damage curves by curvature", tokens=tokens, flops=flops,
        flops32=tokens * each, layers=GRADIENT * shape.layers,
    )  # fmt: skip


def by_moments(params: Params) -> bool:
    """Whether units are scored by the second moments of activations."""
    found: bool = IMPORTANCES[params.evaluate.importance].by_statistics
    return found


def needs_statistics(params: Params) -> bool:
    """Whether the second moments of every site's activations are gathered."""
    return by_moments(params) or solves_projections(params)


def solves_projections(params: Params) -> bool:
    """Whether pruned sites are repaired by these moments."""
    method: RepairMethod = REPAIRS[params.evaluate.reconstruction.method]
    return method.by_statistics


def whitening_flops(shape: ModelShape) -> float:
    """Float64 FLOPs of whitening every site in all its orders: a Cholesky factor and its inverse."""
    return sum(
        len(list(orders_of(shape, site))) * 4.0 / 3 * elements(shape, site) ** 3 for site in shape.sites()
    )


def repair_flops(shape: ModelShape, architecture: Architecture) -> float:
    """Float32 FLOPs of repairing an architecture: a triangle and a product for every site that is cut."""
    total = 0.0
    for site in shape.sites():
        width = architecture.widths[site.layer]
        kept = prefix_size(shape, site.kind, width.of(site.kind))
        gone = elements(shape, site) - kept
        if kept:
            total += shape.hidden * gone * (gone + 2.0 * kept)
    return total


def repair(params: Params, shape: ModelShape, stage: str, architectures: Iterable[Architecture]) -> Step:
    """Whiten the sites once a stage, and repair the architectures."""
    flops32 = sum(repair_flops(shape, architecture) for architecture in architectures)
    again = Step("", "") if stage == "evaluate" or _kept(params, shape) else _moments(params, shape)
    return Step(
        stage, "whiten sites, repair widths", flops=again.flops, flops32=again.flops32 + flops32,
        flops64=whitening_flops(shape), layers=again.layers,
    )  # fmt: skip


def repair_again(stage: str, params: Params, shape: ModelShape, like: Architecture, finalists: int) -> Step:
    """`search.repair_again`: the calibration text once through the dense and each pruned network."""
    section = params.evaluate.calibration
    tokens = section.tokens
    dense, forward = (
        tokens * token_flops(shape, widths, section.sequence_length / 2)
        for widths in (shape.dense().widths, like.widths)
    )
    grams = solves = 0.0
    for site in shape.sites():
        groups, heads, channels = like.widths[site.layer]
        n = channels if site.kind is Kind.MLP else groups * heads * shape.head_dim
        grams += 2.0 * tokens * n * (n + shape.hidden)
        solves += n**3 / 3 + 2.0 * n**2 * shape.hidden
    flops, layers = dense + finalists * forward, (finalists + 1) * shape.layers
    own = finalists * like.total_parameters(shape) * OWN_S
    what = "repair finalists again"
    return Step(
        stage, what, flops=flops, flops32=finalists * grams, flops64=finalists * solves, layers=layers,
        cpu_s=own,
    )  # fmt: skip
