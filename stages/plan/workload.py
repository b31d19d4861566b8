"""The work of each stage: evaluations, tokens and FLOPs, from params and the model's shape alone.

Which architectures `evaluate` measures is known beforehand, and so is what they share; those of the
search are not, and count as the uniform baseline of the budget, sharing nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

from stages.architecture import Architecture, Kind, ModelShape
from stages.config.params import Params
from stages.config.recovery import RecoverySection
from stages.evaluate.calibrate import second_repair
from stages.evaluate.calibrate.conversations import ANSWER, HELD_OUT, TURN
from stages.evaluate.network.elastic import ElasticNetwork
from stages.evaluate.network.prefix import SharedPrefix, branch_depths, tree_order
from stages.flops import head_flops, token_flops
from stages.plan.calibration_work import (
    calibration,
    conversations,
    curvature,
    repair,
    repair_again,
    solves_projections,
)
from stages.plan.step import GRADIENT, OWN_S, Step
from stages.plan.token_counts import TokenCount
from stages.recovery.needs import ADAPTERS
from stages.sample import designs
from stages.sample.limits import limits_of

PROOF_FLOPS, PROOF_BYTES, PROOF_START_S = 0.09e12, 8e9, 15.0
OPEN_S, WRITE_S, KEEP_S, PROVE_S = 1.35e-9, 3.2e-9, 3.4e-9, 2.4e-9
"""Seconds a byte: to check, read and move a model; to cut, write and load an export in a process of its own;
to copy it for MLflow and take its checksums; to write and load dense and pruned model for a proof on a GPU.
Of LLaMA-2-7B's shape, 16 cores beside one H100."""
GGUF_S = {"F16": 6e-9, "Q8_0": 12e-9, "Q4_0": 24e-9}
"""Seconds a parameter to write a GGUF file; Q8_0 of the same run, the others by SmolLM2-135M's beside it."""
_PROMPT_TOKENS = 40
"""Tokens of a short prompt in a chat's template."""
LORA = 0.1
"""What the gradients of adapters cost, of a forward pass, where those of the weights are not asked for."""
TRAINING_ON_GPU, TRAINING_ON_CPU = ((576, 2.8), (4096, 1.5)), 1.2
"""How many times as long as its FLOPs at the rate of our forward pass a training takes, measurements on
the way included; on a GPU by hidden size: SmolLM2-135M on 10 and 31 million tokens (3.2 and 2.5), and
LLaMA-2-7B's shape by LoRA, on one H200; SmolLM2-135M on 32,768 tokens, on two CPU cores."""
WRITING = 31.0
"""How many times as long writing takes, a token at a time, a thousand sequences at once on one H200."""


def evaluation_flops(
    shape: ModelShape, architecture: Architecture, count: TokenCount, start: int = 0
) -> float:
    """FLOPs of measuring an architecture, its first `start` layers being known."""
    attended = count.attended / count.tokens
    layers = count.tokens * token_flops(shape, architecture.widths[start:], attended)
    return layers + head_flops(shape, count.predicted)


class _Meter:
    """Stands in place of the elastic network, where SharedPrefix asks it for work: adds that work up."""

    def __init__(self, shape: ModelShape, count: TokenCount, dtype: torch.dtype) -> None:
        self.shape = shape
        self.embedding = torch.empty(0, dtype=dtype)
        self.flops, self.layers = 0.0, 0
        self._count = count

    def hidden_states(
        self,
        architecture: Architecture,
        batch: Any,
        start: int,
        hidden: Any,
        keep: Iterable[int],
        repair: Any,
    ) -> tuple[None, dict[int, str]]:
        self.flops += evaluation_flops(self.shape, architecture, self._count, start)
        self.layers += (self.shape.layers - start) * self._count.batches
        return None, {depth: "a state" for depth in keep if start <= depth < self.shape.layers}

    def read(self, hidden: Any, batch: Any) -> None:
        """The head's work is in `evaluation_flops`."""


def measured_together(
    shape: ModelShape,
    architectures: Sequence[Architecture],
    count: TokenCount,
    dtype: torch.dtype,
    cache_bytes: int,
) -> tuple[float, int]:
    """FLOPs of measuring architectures that share their first layers, and calls of layers."""
    meter = _Meter(shape, count, dtype)
    text = SimpleNamespace(tokens=torch.empty(count.tokens, device="meta"))
    prefix = SharedPrefix(cast(ElasticNetwork, meter), [cast(Any, text)], cache_bytes)
    ordered = tree_order(architectures)
    for architecture, branches in zip(ordered, branch_depths(ordered), strict=True):
        prefix.log_likelihoods(architecture, branches)
    return meter.flops, meter.layers


def steps(
    params: Params, shape: ModelShape, token_counts: Mapping[str, TokenCount], dtype: torch.dtype
) -> list[Step]:
    """The pipeline's work, in the order in which it is done."""
    made = designs.all_designs(shape, params.sample, params.budget, limits_of(shape, params.budget, None))
    architectures = list({d.architecture: None for d in made})
    cache = params.evaluate.prefix_cache_mb * 2**20
    evaluations, pair = len(architectures), token_counts["pair"]
    flops, layers = measured_together(shape, architectures, pair, dtype, cache)
    on_gpu = dtype == torch.bfloat16
    found = [_open("evaluate", shape)]
    if params.evaluate.calibration.conversations:
        found.append(conversations(params, shape, on_gpu))
    found.append(calibration(params, shape))
    if params.evaluate.curvature_tokens:
        found.append(curvature(params, shape))
    if solves_projections(params):
        found.append(repair(params, shape, "evaluate", architectures))
    tokens = evaluations * pair.tokens
    found.append(Step("evaluate", "measure pairs", evaluations, tokens, flops, layers=layers))
    found += _search(params, shape, token_counts, on_gpu)
    return [*found, *_export(params, shape, token_counts, on_gpu)]


def _open(stage: str, shape: ModelShape) -> Step:
    """Read a model out of files of 16 bits a weight, as most are."""
    return Step(stage, "open the model", cpu_s=2 * shape.total_parameters * OPEN_S)


def _search(
    params: Params, shape: ModelShape, token_counts: Mapping[str, TokenCount], on_gpu: bool
) -> list[Step]:
    section = params.search
    chosen = section.rounds * section.per_round
    last = 1 + finally_pruned(params, shape)
    if section.measurement == params.evaluate.measurement and not section.repair_again:
        last -= min(section.finalists, chosen)  # measured in the rounds, and in this stage's journal
    studies = section.rounds + len(section.front)
    found = [_open("search", shape)]
    found += [Step("search", f"{studies * section.trials:,} forecasts", cpu_s=studies * forecast_s(params))]
    uniform = designs.uniform(shape, params.sample, params.budget, limits_of(shape, params.budget, None))
    if solves_projections(params):
        found.append(repair(params, shape, "search", [uniform] * (chosen + last)))
    what = "measure one round" if section.rounds == 1 else f"measure {section.rounds} rounds"
    found.append(_alone("search", what, shape, uniform, token_counts["pair"], chosen))
    if section.repair_again:
        found.append(repair_again("search", params, shape, uniform, last - 1))
    if section.recovery is not None:
        found += _trainings("search", section.recovery, shape, uniform, last - 1, on_gpu)
    count = token_counts["finalist"]
    return [*found, _alone("search", "measure finalists and baselines", shape, uniform, count, last)]


def _export(
    params: Params, shape: ModelShape, token_counts: Mapping[str, TokenCount], on_gpu: bool
) -> list[Step]:
    uniform = designs.uniform(shape, params.sample, params.budget, limits_of(shape, params.budget, None))
    contenders = _baselines(params, shape) + 1
    count, section = token_counts["final table"], params.export
    kept = uniform.total_parameters(shape)
    itemsize = getattr(torch, section.dtype).itemsize
    found = [
        _open("export", shape),
        Step("export", "write and check weights", cpu_s=kept * itemsize * (WRITE_S + KEEP_S)),
    ]
    found += _trainings("export", section.recovery, shape, uniform, _recovered(params, contenders), on_gpu)
    if section.gguf:
        found.append(Step("export", "write GGUF", cpu_s=kept * sum(GGUF_S[kind] for kind in section.gguf)))
    if solves_projections(params):
        found.append(repair(params, shape, "export", [uniform] * contenders))
    if params.search.repair_again and (again := _repaired_anew(params, shape, contenders - 1)):
        found.append(repair_again("export", params, shape, uniform, again))
    table = contenders + _recovered(params, contenders)
    found.append(_alone("export", "measure the final table", shape, uniform, count, table))
    ends = params.search.rounds + bool(params.evaluate.curvature_tokens or params.sample.single_site_ratios)
    found.append(_alone("export", "measure the search's steps", shape, uniform, token_counts["steps"], ends))
    if section.alternatives is not None:
        models, read = 2 * len(section.alternatives.types), token_counts["alternatives"]
        own = models * shape.total_parameters * OWN_S
        rounded = _alone("export", "measure other types of weights", shape, shape.dense(), read, models)
        found.append(replace(rounded, cpu_s=own))
    if section.answers is not None:
        found.append(_answers(params, shape, 2 + _recovered(params, 2)))
    if section.proof is not None:
        if on_gpu and section.proof.device != "cpu":
            both = (shape.total_parameters + kept) * itemsize
            found.append(Step("export", "prove speed, on the GPU", cpu_s=PROOF_START_S + both * PROVE_S))
        else:
            found.append(Step("export", "prove speed, on the CPU", cpu_s=proof_s(params, shape, uniform)))
    return found


def _answers(params: Params, shape: ModelShape, models: int) -> Step:
    """Prompts answered without a cache, and the windows on which models are compared."""
    asked, length = params.export.answers, params.export.measurement.text.sequence_length
    assert asked is not None
    each = _PROMPT_TOKENS + asked.tokens // 2
    said = asked.tokens * len(asked.prompts) * each
    compared = asked.windows * len(params.corpora.texts) * length
    held_out = HELD_OUT * bool(params.evaluate.calibration.conversations)
    compared += held_out * (TURN + ANSWER)
    dense = shape.dense().widths
    flops = said * token_flops(shape, dense, each / 2) + compared * token_flops(shape, dense, length / 2)
    flops += head_flops(shape, compared + asked.tokens * len(asked.prompts))
    calls = asked.tokens + asked.windows * len(params.corpora.texts) + held_out
    return Step("export", "answer prompts", flops=models * flops, layers=models * calls * shape.layers)


def finally_pruned(params: Params, shape: ModelShape) -> int:
    """How many pruned architectures the search measures at its end: baselines, finalists and the front."""
    return _baselines(params, shape) - 1 + params.search.finalists + len(params.search.front)


def _baselines(params: Params, shape: ModelShape) -> int:
    return len(designs.baselines(shape, params.sample, params.budget, limits_of(shape, params.budget, None)))


def _alone(
    stage: str, what: str, shape: ModelShape, like: Architecture, count: TokenCount, evaluations: int
) -> Step:
    """Evaluations that share no layers."""
    flops = evaluations * evaluation_flops(shape, like, count)
    layers = evaluations * shape.layers * count.batches
    return Step(stage, what, evaluations, evaluations * count.tokens, flops, layers=layers)


def _repaired_anew(params: Params, shape: ModelShape, pruned: int) -> int:
    """How often `export` repairs again: never what the cache holds, and, if it holds none, at every use.

    The winner is used for its folder, the final table, other types of weights and the prompts.
    """
    each = second_repair.kept_bytes(shape)
    limit, export = params.evaluate.cache_mb * 2**20, params.export
    if finally_pruned(params, shape) * each <= limit:
        return 0
    uses = 1 + (export.alternatives is not None) + (export.answers is not None)
    return pruned if each <= limit else pruned + uses


def _recovered(params: Params, contenders: int) -> int:
    """How many of the contenders are recovered: the dense model never."""
    section = params.export.recovery
    return 0 if section.method == "none" else contenders - 1 if section.baselines else 1


def _trainings(
    stage: str,
    section: RecoverySection,
    shape: ModelShape,
    like: Architecture,
    students: int,
    on_gpu: bool,
) -> list[Step]:
    """A recovery: the dense model writes its text, and so many students are trained on it."""
    if section.method == "none" or not students:
        return []
    sequences = max(1, section.tokens // section.sequence_length)
    tokens, half = sequences * section.sequence_length, section.sequence_length / 2
    student, teacher = (token_flops(shape, a.widths, half) for a in (like, shape.dense()))
    found = []
    if "written" in section.sources:
        written = tokens * teacher + head_flops(shape, tokens)
        found.append(Step(stage, "the dense model writes text", flops=WRITING * written))
    trained = tokens * section.passes * students
    backward = GRADIENT if section.method not in ADAPTERS else GRADIENT - 1 + LORA
    flops = trained * backward * student + backward * head_flops(shape, trained)
    if section.method != "full":
        flops += trained * teacher + head_flops(shape, trained)
    times = TRAINING_ON_CPU
    if on_gpu:
        sizes, factors = zip(*TRAINING_ON_GPU, strict=True)
        times = float(np.interp(np.log(shape.hidden), np.log(sizes), factors))
    found.append(Step(stage, "recover what was pruned", flops=times * flops))
    return found


def forecast_s(params: Params) -> float:
    """CPU seconds of one study on forecasts: TPE's own time grows with the square of its trials.

    Measured: 76 s for 1,000 trials of 54 dimensions with TPE, 144 s for 10,000 with NSGA-II.
    """
    trials = params.search.trials
    return trials * 0.015 + (2 * (trials / 2) ** 2 * 76e-6 if params.search.sampler == "tpe" else 0.0)


def proof_s(params: Params, shape: ModelShape, like: Architecture) -> float:
    """Seconds of the proof of speed in PyTorch on one thread; llama.cpp, where installed, is not counted.

    Measured for SmolLM2-135M: `PROOF_FLOPS` a second for prompts and windows, `PROOF_BYTES` of weights a
    second for the tokens after a prompt, and `PROOF_START_S` to write the dense model and load both twice.
    """
    asked = params.export.proof
    if asked is None:
        return 0.0
    sequence = params.export.measurement.text.sequence_length
    seconds, itemsize = PROOF_START_S, getattr(torch, params.export.dtype).itemsize
    for widths in (shape.dense().widths, like.widths):
        outside = shape.outside_parameters
        weights = outside + sum(shape.site_parameters(kind, width) for width in widths for kind in Kind)
        prompts = (asked.rounds + 2) * asked.prompt * token_flops(shape, widths, asked.prompt / 2)
        texts = asked.windows * sequence * (token_flops(shape, widths, sequence / 2) + 2.0 * outside)
        read = (asked.rounds + 2) * asked.continuation * weights * itemsize
        seconds += (prompts + texts) / PROOF_FLOPS + read / PROOF_BYTES
    return seconds
