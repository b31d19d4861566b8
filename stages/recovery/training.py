"""One training of pruned weights: the student, the Trainer's arguments, its checkpoints, what is kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor
from transformers import TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from stages.config.recovery import RecoverySection
from stages.evaluate.calibrate import cache
from stages.evaluate.measure.evaluator import Evaluator
from stages.evaluate.network.device import free_on
from stages.evaluate.network.weights import PrunedWeights, State
from stages.evaluate.workbench import Workbench
from stages.files import InputError
from stages.metrics.objective import objective_of
from stages.recovery import curve
from stages.recovery.curve import Curve, Point
from stages.recovery.needs import ADAPTERS, activation_bytes, training_bytes
from stages.recovery.student import adapters_of, quantised, state_now, student_of
from stages.recovery.text import TrainingText
from stages.recovery.trainer import OBJECTIVE, RecoveryTrainer, Sequences, Watch
from stages.tracking.records import Numbers

WEIGHTS, FACTORS = "weights.safetensors", "adapters.safetensors"
"""Files of what a training made: all weights, or adapters beside those that were there before."""


CURVE = "curve.json"


def file_of(method: str) -> str:
    """The name of the file that a method keeps; beside quantised weights adapters alone would say little."""
    return FACTORS if method == "lora" else WEIGHTS


WARM_UP = 0.03
"""The fraction of steps in which the learning rate rises."""
LOGS = 100
"""Losses that are kept of a training."""
ACTIVATION_SHARE = 0.8
"""What the activations of a batch may take of a GPU's memory that weights and moments leave."""
COMPILED_STEPS = 400
"""Steps from which on compiling the student, a minute or two, pays on a GPU."""


@dataclass(frozen=True)
class Training:
    """What a training is made from; `folder` has its checkpoints and then its weights."""

    bench: Workbench
    section: RecoverySection
    weights: PrunedWeights
    text: TrainingText
    evaluator: Evaluator
    rate: float
    folder: Path
    tell: Callable[[Numbers], None]

    @property
    def on_gpu(self) -> bool:
        return self.bench.network.device.type == "cuda"

    @property
    def adapters(self) -> bool:
        """Whether adapters are trained, and what is beside them stays as it is."""
        return self.section.method in ADAPTERS

    @property
    def dtype(self) -> torch.dtype:
        """What the student's weights are in: those that are trained in float32."""
        return torch.bfloat16 if self.adapters and self.on_gpu else torch.float32

    @property
    def per_step(self) -> int:
        """Sequences of a step."""
        return max(1, self.section.tokens_per_step // self.text.tokens.shape[1])

    @property
    def steps(self) -> int:
        return max(1, self.section.passes * len(self.text.tokens) // self.per_step)

    @property
    def between_logs(self) -> int:
        """Steps whose mean loss is logged."""
        return max(1, self.steps // LOGS)

    @property
    def local_steps(self) -> int:
        """The first steps, in which sublayers are trained apart; whole means of losses."""
        return min(self.steps, round(self.section.local * self.steps / self.between_logs) * self.between_logs)

    @torch.inference_mode(False)
    @torch.enable_grad()
    def run(self) -> State:
        """Train and keep the best checkpoint; a training that was cut off goes on from its last one.

        A GPU whose memory ends goes on with half as many sequences at once. Who measures weights that are yet
        to be trained asks for no gradients: here they are.

        Raises:
            InputError: memory does not hold one sequence, or the training goes wrong.
        """
        at_once = self.at_once()
        while True:
            try:
                trainer = self.trained(at_once)
                return self._keep_best(trainer)
            except torch.OutOfMemoryError as error:
                said = str(error).split(". ")[0]
            if at_once == 1:
                raise InputError(
                    f"the GPU's memory does not hold one sequence in training ({said}); lower "
                    "export.recovery.sequence_length, or set export.recovery.method to qlora"
                )
            torch.cuda.empty_cache()
            at_once = max(size for size in range(1, at_once) if self.per_step % size == 0)
            print(f"The GPU's memory ended ({said}): {at_once} sequences at once from here on", flush=True)

    def trained(self, at_once: int) -> RecoveryTrainer:
        """The Trainer at the end of its training, its best checkpoint loaded."""
        trainer = self.trainer(self.student(), at_once, **self._checkpoints())
        sequences, length = self.text.tokens.shape
        print(
            f"Recovery: {self.section.method} on {sequences * length:,} tokens, {self.text.words}: "
            f"{self.steps} steps of {self.per_step * length:,} tokens, {at_once} sequences of {length} at "
            f"once, learning rate {self.rate:.1e}",
            flush=True,
        )
        last = _last_checkpoint(self._trainer_folder)
        if last is not None:
            print(f"Recovery: going on from {last.name}", flush=True)
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
        return trainer

    def student(self) -> Any:
        """The pruned model in transformers' modules, with adapters where those are trained."""
        set_seed(self.section.seed)  # adapters begin with random numbers
        device, loaded = self.bench.network.device, self.bench.checkpoint
        if self.section.method == "qlora":
            student = student_of(loaded, self.weights, self.dtype, torch.device("cpu"))
            student = quantised(student, self.dtype, device)
        else:
            student = student_of(loaded, self.weights, self.dtype, device)
        if not self.adapters:
            return student
        rank = self.section.rank
        lora = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
        return peft.get_peft_model(student, lora)

    def trainer(self, student: Any, at_once: int, **asked: Any) -> RecoveryTrainer:
        """A Trainer of the student; `asked` are more of transformers' `TrainingArguments`."""
        arguments = TrainingArguments(
            output_dir=str(self._trainer_folder),
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=self.per_step // at_once,
            max_steps=self.steps,
            learning_rate=self.rate,
            lr_scheduler_type="cosine",
            warmup_steps=max(1, round(WARM_UP * self.steps)),
            weight_decay=0.0,
            adam_beta2=0.95,
            max_grad_norm=1.0,
            bf16=self.on_gpu,
            torch_compile=self.on_gpu and self.steps >= COMPILED_STEPS,
            use_cpu=not self.on_gpu,
            seed=self.section.seed,
            data_seed=self.section.seed,
            logging_steps=self.between_logs,
            logging_nan_inf_filter=False,
            eval_strategy="steps",
            eval_on_start=True,
            remove_unused_columns=False,
            dataloader_pin_memory=self.on_gpu,
            report_to="none",
            disable_tqdm=True,
            **asked,
        )
        arguments._n_gpu = min(1, arguments.n_gpu)  # no DataParallel
        sequenced = Sequences(self.text.tokens)
        trainer = RecoveryTrainer(
            teacher=self.bench.network,
            by_predictions=self.section.method != "full",
            local_steps=self.local_steps,
            measure=lambda: self.measured(student),
            model=student,
            args=arguments,
            train_dataset=sequenced,
            eval_dataset=sequenced,  # asked for, and not what `measured` measures
            callbacks=[Watch(self.per_step * self.text.tokens.shape[1], self.tell)],
        )
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        return trainer

    def measured(self, student: Any) -> dict[str, float]:
        """The search's objective and the metrics of a student as it is, on the selection part."""
        state = state_now(student)
        return self._worth(self.weights.then({"recovery": "under way"}, lambda dtype: state))

    def _worth(self, weights: PrunedWeights) -> dict[str, float]:
        metrics, _ = self.evaluator.measure(weights.architecture, weights=weights)
        return {"objective": objective_of(metrics, self.bench.params.search.objective), **metrics}

    def _course(self, trainer: RecoveryTrainer, name: str) -> list[Point]:
        """The values of a figure by the tokens after which they were, those before a kill included."""
        tokens = self.per_step * self.text.tokens.shape[1]
        log = trainer.state.log_history
        return [(float(entry["step"] * tokens), float(entry[name])) for entry in log if name in entry]

    def start(self, measured: Sequence[float]) -> float:
        """The objective of the weights as they were: the first that was measured, if nothing is quantised."""
        if self.section.method != "qlora":
            return measured[0]
        return self._worth(self.weights)["objective"]

    def at_once(self) -> int:
        """Sequences that go through the student at once: what memory holds, and a divisor of a step's."""
        length, device = self.text.tokens.shape[1], self.bench.network.device
        most = max(1, 2048 // length)
        if self.on_gpu:
            kept = self.weights.architecture.total_parameters(self.bench.checkpoint.shape)
            left = ACTIVATION_SHARE * (free_on(device) - training_bytes(self.section.method, kept))
            most = int(left / (length * activation_bytes(self.bench.checkpoint.shape)))
        return max(s for s in range(1, self.per_step + 1) if self.per_step % s == 0 and s <= max(1, most))

    @property
    def _trainer_folder(self) -> Path:
        return self.folder / "trainer"

    def _checkpoints(self) -> dict[str, Any]:
        """The Trainer's arguments by which it measures, saves, and takes the best in the end."""
        every = max(1, self.steps // self.section.checkpoints)
        return {
            "eval_steps": every,
            "save_strategy": "steps",
            "save_steps": every,
            "save_total_limit": 2,
            "load_best_model_at_end": True,
            "metric_for_best_model": OBJECTIVE,
            "greater_is_better": False,
        }

    def _keep_best(self, trainer: RecoveryTrainer) -> State:
        """Keep the checkpoint that is loaded now, the best, unless the weights as they were are better."""
        measured = [entry[OBJECTIVE] for entry in trainer.state.log_history if OBJECTIVE in entry]
        start, best = self.start(measured), min(measured[1:])
        student = trainer.model
        alone = file_of(self.section.method) == FACTORS
        tensors: Mapping[str, Tensor] = adapters_of(student) if alone else state_now(student)
        if best >= start:
            print(
                f"Recovery: no checkpoint's objective ({best:.4f} at best) is below that of the weights as "
                f"they were ({start:.4f}): those are exported. Lower export.recovery.learning_rate, or give "
                "more text",
                flush=True,
            )
            as_it_was = {name: torch.zeros_like(factor) for name, factor in tensors.items()}
            tensors = as_it_was if alone else self.weights.make(torch.float32)
        loaded = self.bench.checkpoint
        twice = {loaded.family.head} if loaded.shape.tied_embeddings else set()
        best_of_all = {name: tensor.cpu() for name, tensor in tensors.items() if name not in twice}
        curve.write(
            self.folder / CURVE, Curve(self._course(trainer, OBJECTIVE), self._course(trainer, "loss"))
        )
        cache.write(self.folder / file_of(self.section.method), best_of_all)
        shutil.rmtree(self._trainer_folder, ignore_errors=True)
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
