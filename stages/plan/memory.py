"""What a run holds at most: on the device, and on the disk."""

from __future__ import annotations

from collections.abc import Mapping

from stages.architecture import Kind, ModelShape
from stages.config.budget import BYTES
from stages.config.choices import IMPORTANCES
from stages.config.params import Params
from stages.evaluate.measure.evaluator import TOKENS_PER_BATCH
from stages.evaluate.network.decoder import PREDICTIONS_AT_ONCE
from stages.evaluate.network.fused import VOCABULARY_AT_ONCE
from stages.evaluate.workbench import CALIBRATION_BATCH_TOKENS
from stages.plan.machines import Machine
from stages.plan.token_counts import TokenCount
from stages.plan.workload import elements, needs_statistics, solves_projections, widths_to_solve
from stages.sample import designs


def on_device(
    params: Params, shape: ModelShape, token_counts: Mapping[str, TokenCount], machine: Machine
) -> dict[str, float]:
    """Bytes by what holds them. Calibration and evaluation come one after the other: see `peak`."""
    each, statistics = machine.bytes_each, needs_statistics(params)
    weights = shape.total_parameters * each
    copies = 2 if statistics or machine.device == "cpu" else 1  # unsorted, and sorted by importance
    largest = max(token_counts.values(), key=lambda count: count.tokens)
    batch = min(largest.tokens, TOKENS_PER_BATCH[machine.device])
    limit = params.evaluate.prefix_cache_mb * 2**20
    columns = min(VOCABULARY_AT_ONCE, shape.vocabulary) if machine.device == "cpu" else shape.vocabulary
    states = [count.tokens * shape.hidden * each for count in token_counts.values()]
    found: dict[str, float] = {
        "weights" + (", twice" if copies == 2 else ""): copies * weights,
        "hidden states in common": max(min(limit // s, shape.layers) * s for s in states),
        "activations of a batch": batch * (3 * shape.channels + 6 * shape.hidden) * each,
        "logits": min(largest.predicted, PREDICTIONS_AT_ONCE[machine.device]) * columns * (each + 8),
    }
    tokens, batch = calibration_tokens(params)
    if held := IMPORTANCES[params.evaluate.importance].held_bytes(shape, tokens, batch, each):
        found["scoring"] = held
    if statistics:
        grams = [elements(shape, kind) ** 2 for kind in Kind]
        found["statistics"] = 4 * shape.layers * sum(grams)
        if solves_projections(params):
            found["repair of one site"] = 8 * 4 * max(grams)
    return found


def calibration_tokens(params: Params) -> tuple[int, int]:
    """Tokens of the calibration text, and those of one batch of it."""
    section = params.evaluate.calibration
    tokens = section.samples * section.sequence_length
    a_batch = max(1, CALIBRATION_BATCH_TOKENS // section.sequence_length) * section.sequence_length
    return tokens, min(tokens, a_batch)


def peak(parts: Mapping[str, float]) -> float:
    """Bytes of all that is held at one time: scoring is over when evaluation begins."""
    scoring = parts.get("scoring", 0.0)
    evaluation = ("hidden states in common", "activations of a batch", "logits")
    running = sum(parts[name] for name in evaluation)
    return sum(parts.values()) - min(scoring, running)


def on_disk(params: Params, shape: ModelShape) -> dict[str, float]:
    """Bytes by what takes them."""
    removed = params.budget.overall_ratio or 0.0  # where limits decide alone: at most the dense size
    kept = shape.total_parameters - removed * shape.decoder_parameters
    found = {"export, and MLflow's copy": 2 * kept * BYTES[params.export.dtype]}
    wanted = 0.0
    if needs_statistics(params):
        wanted += 4.0 * shape.layers * sum(elements(shape, kind) ** 2 for kind in Kind)
    if solves_projections(params):
        made = designs.all_designs(shape, params.sample, params.budget)
        for site, widths in widths_to_solve(shape, [d.architecture for d in made]).items():
            sizes = [w[0] if site.kind is Kind.MLP else w[0] * w[1] * shape.head_dim for w in widths]
            wanted += 4.0 * shape.hidden * sum(sizes)
    if wanted:
        limit = params.evaluate.cache_mb * 2.0**20
        short = f", of {wanted / 1e9:.1f} GB (raise evaluate.cache_mb)" if wanted > limit else ""
        found[f"statistics and repaired projections{short}"] = min(wanted, limit)
    return found
