"""Train pruned weights by what params ask for; what was trained once is kept.

All parameters, or adapters beside them (LoRA, Hu et al. 2021, arXiv 2106.09685), learn from the dense model's
predictions or from the text itself. The checkpoint with the best objective on the selection part is taken:
the weights as they were, if none is better.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.architecture import Architecture
from stages.config.params import RecoverySection
from stages.evaluate.calibrate import cache
from stages.evaluate.measure.evaluator import Evaluator
from stages.evaluate.network.weights import PrunedWeights, State
from stages.evaluate.workbench import Workbench
from stages.export.recovery.kept import kept
from stages.export.recovery.needs import require_room
from stages.export.recovery.recovered import Recovered
from stages.export.recovery.text import TrainingText, training_text
from stages.files import InputError, cache_folder, digest
from stages.search.objective import objective_of
from stages.tracking.records import Numbers

try:
    import accelerate  # type: ignore[import-untyped]  # noqa: F401
    import peft
    from transformers import TrainingArguments, set_seed
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    from stages.export.recovery.student import adapter_deltas, state_now, student_of
    from stages.export.recovery.trainer import OBJECTIVE, RecoveryTrainer, Sequences, Watch
except ModuleNotFoundError as error:
    raise InputError(
        f"export.recovery.method trains, and the package {error.name} is not installed: "
        "pip install 'prunecast[recovery]', or set it to none"
    ) from error

VERSION = 1
"""The version of what training makes, set by hand: raise it when it changes."""
WEIGHTS = "weights.safetensors"
WARM_UP = 0.03
"""The fraction of steps in which the learning rate rises."""
LOGS = 100
"""Losses that are kept of a training."""
ACTIVATION_SHARE = 0.3
"""What the activations of a batch may take of the GPU's free memory."""
COMPILED_STEPS = 400
"""Steps from which on compiling the student, a minute or two, pays on a GPU."""


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
    path = folder / WEIGHTS

    def train() -> State:
        return _train(bench, weights, text, evaluator, rate, folder, tell)

    if not path.is_file():
        train()
    adapters = section.method == "lora"

    def make(dtype: torch.dtype) -> State:
        found: State | None = kept(path)
        if found is None:
            found = train()
        if not adapters:
            return {name: tensor.to(dtype) for name, tensor in found.items()}
        base = dict(weights.make(dtype))
        return base | {name: (base[name].float() + delta).to(dtype) for name, delta in found.items()}

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


def _train(
    bench: Workbench,
    weights: PrunedWeights,
    text: TrainingText,
    evaluator: Evaluator,
    rate: float,
    folder: Path,
    tell: Callable[[Numbers], None],
) -> State:
    """Train and keep the best checkpoint; one that was cut off goes on from its last one."""
    section, device = bench.params.export.recovery, bench.network.device
    on_gpu = device.type == "cuda"
    adapters = section.method == "lora"
    check_room(bench, weights.architecture)
    set_seed(section.seed)  # adapters begin with random numbers
    dtype = torch.bfloat16 if adapters and on_gpu else torch.float32
    student = student_of(bench.checkpoint, weights, dtype, device)
    if adapters:
        lora = peft.LoraConfig(r=section.rank, lora_alpha=2 * section.rank, target_modules="all-linear")
        student = peft.get_peft_model(student, lora)
    sequences, length = text.tokens.shape
    per_step = max(1, section.tokens_per_step // length)
    micro = _micro_batch(bench, length, per_step)
    steps = max(1, section.passes * sequences // per_step)
    print(
        f"Recovery: {section.method} on {text.tokens.numel():,} tokens, {text.words}: {steps} steps of "
        f"{per_step * length:,} tokens, {micro} sequences of {length} at once, learning rate {rate:.1e}",
        flush=True,
    )

    def measure() -> dict[str, float]:
        state = state_now(student)
        now = weights.then({"recovery": "under way"}, lambda dtype: state)
        metrics, _ = evaluator.measure(weights.architecture, weights=now)
        return {"objective": objective_of(metrics, bench.params.search.objective), **metrics}

    every = max(1, steps // section.checkpoints)
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=per_step // micro,
        max_steps=steps,
        learning_rate=rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(WARM_UP * steps)),
        weight_decay=0.0,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        bf16=on_gpu,
        torch_compile=on_gpu and steps >= COMPILED_STEPS,
        use_cpu=not on_gpu,
        seed=section.seed,
        data_seed=section.seed,
        logging_steps=max(1, steps // LOGS),
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=every,
        eval_on_start=True,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=OBJECTIVE,
        greater_is_better=False,
        remove_unused_columns=False,
        dataloader_pin_memory=on_gpu,
        report_to="none",
        disable_tqdm=True,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # no DataParallel
    sequenced = Sequences(text.tokens)
    trainer = RecoveryTrainer(
        teacher=None if section.method == "full" else bench.network,
        logits_scale=bench.network.recipe.logits_scale,
        measure=measure,
        model=student,
        args=arguments,
        train_dataset=sequenced,
        eval_dataset=sequenced,  # asked for, and not what `measure` measures
        callbacks=[Watch(per_step * length, tell)],
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    last = _last_checkpoint(folder / "trainer")
    if last is not None:
        print(f"Recovery: going on from {last.name}", flush=True)
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    shape, family = bench.checkpoint.shape, bench.checkpoint.family
    tied = {family.head} if shape.tied_embeddings else set()
    return _keep_best(trainer, student, weights, adapters, folder, tied)


def _keep_best(
    trainer: RecoveryTrainer,
    student: Any,
    weights: PrunedWeights,
    adapters: bool,
    folder: Path,
    tied: Collection[str],
) -> State:
    """Keep the checkpoint that is loaded now, the best one, unless the weights as they were are better.

    `tied` are names of tensors that are others too.
    """
    measured = [entry[OBJECTIVE] for entry in trainer.state.log_history if OBJECTIVE in entry]
    start, best = measured[0], min(measured[1:])
    tensors: Mapping[str, Tensor] = adapter_deltas(student) if adapters else state_now(student)
    if best >= start:
        print(
            f"Recovery: no checkpoint's objective ({best:.4f} at best) is below that of the weights as they "
            f"were ({start:.4f}): those are exported. Lower export.recovery.learning_rate, or give more text",
            flush=True,
        )
        as_it_was = {name: torch.zeros_like(delta) for name, delta in tensors.items()}
        tensors = as_it_was if adapters else weights.make(torch.float32)
    best_of_all = {name: tensor.cpu() for name, tensor in tensors.items() if name not in tied}
    cache.write(folder / WEIGHTS, best_of_all)
    shutil.rmtree(folder / "trainer", ignore_errors=True)
    return best_of_all


def _last_checkpoint(folder: Path) -> Path | None:
    """The Trainer's last checkpoint that is whole, if there is one: its state is written last."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    for path in reversed(found):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(path, ignore_errors=True)  # a kill cut it off
        else:
            return path
    return None


def _micro_batch(bench: Workbench, length: int, per_step: int) -> int:
    """Sequences that go through the student at once: what memory holds, and a divisor of those of a step."""
    shape = bench.checkpoint.shape
    # Bytes: what is kept of a layer for its gradients, half in 16 and half in 32 bits; an upper estimate.
    each = 6 * length * shape.layers * (12 * shape.hidden + 5 * shape.channels)
    if bench.network.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(bench.network.device)
        most = max(1, int(ACTIVATION_SHARE * free / each))
    else:
        most = max(1, 2048 // length)
    return max(size for size in range(1, per_step + 1) if per_step % size == 0 and size <= most)
