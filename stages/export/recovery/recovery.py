"""Train pruned weights by what params ask for; what was trained once is kept.

All parameters, or adapters beside them (LoRA, Hu et al. 2021, arXiv 2106.09685), learn from the dense model's
predictions or from the text itself. The checkpoint with the best objective on the selection part is taken:
the weights as they were, if none is better.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch

from stages.architecture import Architecture
from stages.config.params import RecoverySection
from stages.evaluate.measure.evaluator import Evaluator
from stages.evaluate.network.weights import PrunedWeights, State
from stages.evaluate.workbench import Workbench
from stages.export.recovery.kept import kept
from stages.export.recovery.needs import require_room
from stages.export.recovery.recovered import Recovered
from stages.export.recovery.text import TrainingText, training_text
from stages.files import InputError, cache_folder, digest
from stages.tracking.records import Numbers

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on a CPU it names what else could be installed
try:
    import accelerate  # type: ignore[import-untyped]  # noqa: F401

    from stages.export.recovery.student import merged
    from stages.export.recovery.training import FACTORS, Training, file_of
except ModuleNotFoundError as error:
    raise InputError(
        f"export.recovery.method trains, and the package {error.name} is not installed: "
        "pip install 'prunecast[recovery]', or set it to none"
    ) from error

VERSION = 1
"""The version of what training makes, set by hand: raise it when it changes."""


def recovered(
    bench: Workbench,
    weights: PrunedWeights,
    tell: Callable[[Numbers], None] = lambda _: None,
    text: TrainingText | None = None,
) -> Recovered:
    """The weights after the recovery of params, trained now or kept of before.

    `tell` is called with the figures of a training as it goes, each with its "tokens"; `text`, where it is
    there already, is that of `training_text`.

    Raises:
        InputError: the text is too short or not there, memory ends, or the training goes wrong.
    """
    section = bench.params.export.recovery
    text = text or training_text(bench, section)
    evaluator = bench.evaluator("selection", bench.params.search.measurement)
    kept_parameters = weights.architecture.total_parameters(bench.checkpoint.shape)
    rate = section.learning_rate or learning_rate(kept_parameters)
    step = {"recovery": _identity(bench, section, text, evaluator, rate)}
    folder = cache_folder() / "recovery" / digest(weights.digest, step)

    def train() -> State:
        check_room(bench, weights.architecture)
        return Training(bench, weights, text, evaluator, rate, folder, tell).run()

    path = folder / file_of(section.method)
    if not path.is_file():
        train()

    def make(dtype: torch.dtype) -> State:
        found: State | None = kept(path)
        if found is None:
            found = train()
        if path.name != FACTORS:
            return {name: tensor.to(dtype) for name, tensor in found.items()}
        base = dict(weights.make(dtype))
        return base | merged(base, found)

    words = (
        f"{_WORDS[section.method]} on {text.tokens.numel():,} tokens, {text.words}, at a learning rate of "
        f"{rate:.1e} and {section.tokens_per_step:,} tokens a step"
    )
    return Recovered(weights.then(step, make), words)


def check_room(bench: Workbench, architecture: Architecture) -> None:
    """Check that the GPU, if there is one, holds the training of an architecture.

    Raises:
        InputError: it does not.
    """
    if bench.network.device.type == "cuda":
        kept_parameters = architecture.total_parameters(bench.checkpoint.shape)
        free, _ = torch.cuda.mem_get_info(bench.network.device)
        require_room(bench.params.export.recovery.method, kept_parameters, free)


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
    asked = section.model_dump(exclude={"baselines", "text", "tokens", "learning_rate"})
    return {
        **asked,
        "learning_rate": rate,
        "tokens": text.digest,
        "chosen by": [evaluator.digest, bench.params.search.objective],
        "device": bench.network.device.type,
        "version": VERSION,
    }
