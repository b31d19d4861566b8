"""Train pruned weights by what params ask for; what was trained once is kept.

All parameters, or adapters beside them (LoRA, Hu et al. 2021, arXiv 2106.09685), learn from the dense model's
predictions or from the text itself. The checkpoint with the best objective on the selection part is taken:
the weights as they were, if none is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from stages.architecture import Architecture
from stages.config.recovery import RecoverySection
from stages.evaluate.measure.evaluator import Evaluator
from stages.evaluate.network.device import free_on
from stages.evaluate.network.weights import PrunedWeights, State
from stages.evaluate.workbench import Workbench
from stages.files import InputError, cache_folder, digest
from stages.recovery import curve
from stages.recovery.kept import kept
from stages.recovery.needs import require_room
from stages.recovery.recovered import Recovered
from stages.recovery.text import TrainingText
from stages.tracking.records import Numbers

try:
    import accelerate  # type: ignore[import-untyped]  # noqa: F401

    from stages.recovery.student import merged
    from stages.recovery.training import CURVE, FACTORS, Training, file_of
except ModuleNotFoundError as error:
    raise InputError(
        f"export.recovery.method trains, and the package {error.name} is not installed: "
        "pip install 'prunecast[recovery]', or set it to none"
    ) from error

VERSION = 1
"""The version of what training makes, set by hand: raise it when it changes."""


def recovered(
    bench: Workbench,
    section: RecoverySection,
    weights: PrunedWeights,
    text: TrainingText,
    tell: Callable[[Numbers], None] = lambda _: None,
) -> Recovered:
    """The weights after a recovery on a text, trained now or kept of before.

    `tell` is called with the figures of a training as it goes, each with its "tokens".

    Raises:
        InputError: memory ends, or the training goes wrong.
    """
    evaluator, rate, step = _prepared(bench, section, weights, text)
    folder = cache_folder() / "recovery" / digest(weights.digest, step)
    path = folder / file_of(section.method)

    def train() -> State:
        check_room(bench, section, weights.architecture)
        return Training(bench, section, weights, text, evaluator, rate, folder, tell).run()

    if not path.is_file():
        train()

    def make(dtype: torch.dtype) -> State:
        return _in(dtype, kept(path) or train(), weights, path.name)

    first = f"{100 * section.local:g} % of the steps each sublayer by the dense model's own, then "
    words = (
        f"{first if section.local else ''}{_WORDS[section.method]} on {text.tokens.numel():,} tokens, "
        f"{text.words}, at a learning rate of {rate:.1e} and {section.tokens_per_step:,} tokens a step"
    )
    return Recovered(weights.then(step, make), words, curve.read(folder / CURVE))


def tried(
    bench: Workbench, section: RecoverySection, weights: PrunedWeights, text: TrainingText
) -> PrunedWeights:
    """The weights after a recovery that is trained when they are asked for, every time, and not kept.

    Raises:
        InputError: memory ends, or the training goes wrong.
    """
    evaluator, rate, step = _prepared(bench, section, weights, text)

    def make(dtype: torch.dtype) -> State:
        check_room(bench, section, weights.architecture)
        (parent := cache_folder() / "recovery").mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="tried-", dir=parent) as name:
            found = Training(bench, section, weights, text, evaluator, rate, Path(name), lambda _: None).run()
        return _in(dtype, found, weights, file_of(section.method))

    return weights.then(step, make)


def _prepared(
    bench: Workbench, section: RecoverySection, weights: PrunedWeights, text: TrainingText
) -> tuple[Evaluator, float, dict[str, Any]]:
    """What chooses the best checkpoint, the learning rate, and the step as weights know it."""
    evaluator = bench.evaluator("selection", bench.params.search.measurement)
    kept_parameters = weights.architecture.total_parameters(bench.checkpoint.shape)
    rate = section.learning_rate or learning_rate(kept_parameters)
    return evaluator, rate, {"recovery": _identity(bench, section, text, evaluator, rate)}


def _in(dtype: torch.dtype, found: State, weights: PrunedWeights, file: str) -> State:
    """What a training made, in a dtype; adapters are merged into the weights that they stood beside."""
    if file != FACTORS:
        return {name: tensor.to(dtype) for name, tensor in found.items()}
    base = dict(weights.make(dtype))
    return base | merged(base, found)


def check_room(bench: Workbench, section: RecoverySection, architecture: Architecture) -> None:
    """Check that the GPU, if there is one, holds the training of an architecture.

    Raises:
        InputError: it does not.
    """
    if bench.network.device.type == "cuda":
        kept_parameters = architecture.total_parameters(bench.checkpoint.shape)
        require_room(section.method, kept_parameters, free_on(bench.network.device))


_WORDS = {
    "distill": "all parameters by the dense model's predictions",
    "full": "all parameters by the text itself",
    "lora": "adapters by the dense model's predictions",
    "qlora": "adapters, beside weights in 4 bits, by the dense model's predictions",
}


def learning_rate(parameters: int) -> float:
    """3e-4 up to a billion parameters, 3e-5 from seven billion on; logarithms in proportion between them."""
    share = min(1.0, max(0.0, math.log(parameters / 1e9) / math.log(7)))
    return 3e-4 * float(0.1**share)


def _identity(
    bench: Workbench, section: RecoverySection, text: TrainingText, evaluator: Evaluator, rate: float
) -> dict[str, Any]:
    """Everything that decides what training makes of weights."""
    asked = section.model_dump(exclude={"baselines", "text", "tokens", "learning_rate", "local"})
    if section.local:  # what was kept before there was a local stage is the same without one
        asked["local"] = section.local
    return {
        **asked,
        "learning_rate": rate,
        "tokens": text.digest,
        "chosen by": [evaluator.digest, bench.params.search.objective],
        "device": bench.network.device.type,
        "version": VERSION,
    }
