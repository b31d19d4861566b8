"""What a run holds at most: on the device, beside it in host memory, and on the disk."""

from __future__ import annotations

import math
from collections.abc import Mapping

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from stages.architecture import ModelShape
from stages.config.budget import BYTES
from stages.config.params import Params
from stages.evaluate.calibrate import second_repair, statistics
from stages.evaluate.calibrate.memory import SPARE, MemoryPlan, Texts, memory_plan
from stages.evaluate.measure.evaluator import TOKENS_PER_BATCH
from stages.evaluate.network.decoder import PREDICTIONS_AT_ONCE
from stages.evaluate.workbench import CALIBRATION_BATCH_TOKENS
from stages.plan.calibration_work import needs_statistics
from stages.plan.machines import Machine
from stages.plan.token_counts import TokenCount
from stages.plan.workload import finally_pruned


def planned(
    params: Params, shape: ModelShape, token_counts: Mapping[str, TokenCount], machine: Machine
) -> MemoryPlan:
    """The plan that a measuring stage makes for itself, on a machine with nothing else in its memory."""
    tokens, batch = calibration_tokens(params)
    largest = max(token_counts.values(), key=lambda count: count.tokens)
    most, predictions = TOKENS_PER_BATCH[machine.device], PREDICTIONS_AT_ONCE[machine.device]
    texts = Texts(
        calibration=tokens,
        calibration_batch=batch,
        measured=largest.tokens,
        batch=min(largest.tokens, most),
        predictions=min(largest.predicted, predictions),
    )
    device, limit = machine.device, params.evaluate.gpu_memory_gib
    whole = machine.memory_bytes
    if device == "cuda" and limit is not None:
        whole = min(whole, limit * 2**30)
    beside = math.inf if device == "cuda" else 0.0
    return memory_plan(
        shape, params.evaluate, texts, device, machine.bytes_each, SPARE[device] * whole, beside,
        own_weights=params.search.repair_again * finally_pruned(params, shape),
    )  # fmt: skip


def calibration_tokens(params: Params) -> tuple[int, int]:
    """Tokens of the calibration text, and those of one batch of it."""
    section = params.evaluate.calibration
    a_batch = max(1, CALIBRATION_BATCH_TOKENS // section.sequence_length) * section.sequence_length
    return section.tokens, min(section.tokens, a_batch)


def kept_parameters(params: Params, shape: ModelShape) -> float:
    """Parameters of the pruned model; where limits decide alone, at most the dense one's."""
    return shape.total_parameters - (params.budget.overall_ratio or 0.0) * shape.decoder_parameters


def on_disk(params: Params, shape: ModelShape) -> dict[str, float]:
    """Bytes by what takes them; the cache keeps the entry that it wrote last, be it larger than its limit."""
    limit, parameters = params.evaluate.cache_mb * 2**20, kept_parameters(params, shape)
    model = parameters * BYTES[params.export.dtype]
    blocks = [GGML_QUANT_SIZES[GGMLQuantizationType[kind]] for kind in params.export.gguf]
    export = model + parameters * sum(size / weights for weights, size in blocks)
    found = {"export": export, "DVC's copy of it": export, "MLflow's copy of the model": model}
    size, each = statistics.size_bytes(shape), second_repair.kept_bytes(shape)
    gathered = size if needs_statistics(params) and size <= limit else 0
    again = each * finally_pruned(params, shape) if params.search.repair_again else 0
    cached = min(gathered + again, max(limit, each))
    return found | {"calibration's statistics and refitted projections, in the cache": cached}
