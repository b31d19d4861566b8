"""Hugging Face's Trainer on a pruned model: the losses, what it watches, and when it stops."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.evaluate.network.batch import Batch
from stages.evaluate.network.elastic import ElasticNetwork
from stages.files import InputError
from stages.progress import Progress
from stages.recovery.local import local_loss, states_of
from stages.recovery.loss import cross_entropy, divergence
from stages.recovery.student import base_of
from stages.tracking.records import Numbers

OBJECTIVE = "eval_objective"
"""The search's objective on the selection part, by which the best checkpoint is chosen."""
LOCAL = "local_loss"
"""The mean normalised squared error of the sublayers, in the local stage."""
SHOWN = (LOCAL, "loss", OBJECTIVE)
RISEN = 1.5
"""How many times the first losses the latest ones may be."""
LAST = 5
"""Losses that are averaged before they are compared."""

Evaluate = Callable[[], Mapping[str, float]]
"""Measures the student as it is: the objective and metrics of the selection part."""


class Sequences(Dataset[dict[str, Tensor]]):
    """Sequences (N, L) of tokens, one after the other."""

    def __init__(self, tokens: Tensor) -> None:
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        return {"input_ids": self._tokens[place]}


class RecoveryTrainer(Trainer):
    """Trains a student on a teacher's predictions, or on the next tokens of a text.

    In the first `local_steps` every sublayer learns what the teacher's adds.
    """

    def __init__(
        self,
        *,
        teacher: ElasticNetwork,
        by_predictions: bool,
        local_steps: int,
        measure: Evaluate,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        self.teacher, self.by_predictions, self.measure = teacher, by_predictions, measure
        self.local_steps = local_steps
        self.model_accepts_loss_kwargs = False  # the loss is a mean, to be divided by the accumulated steps
        self._body: Any = None

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The mean loss over the tokens of a batch of sequences."""
        tokens = inputs["input_ids"]
        student = base_of(self.accelerator.unwrap_model(model))
        if self.state.global_step < self.local_steps:
            states = states_of(self.teacher, tokens)
            with torch.autocast(tokens.device.type, torch.bfloat16, enabled=tokens.is_cuda):
                return local_loss(student.model, tokens, states, self.teacher.recipe)
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=tokens.is_cuda):
            hidden = self._hidden(student.model, tokens)
            hidden = hidden.to(torch.bfloat16) if tokens.is_cuda else hidden
        head = student.get_output_embeddings().weight
        scale = self.teacher.recipe.logits_scale
        if not self.by_predictions:
            return cross_entropy(hidden[:, :-1].flatten(0, 1), head, tokens[:, 1:].flatten(), scale)
        return divergence(hidden.flatten(0, 1), head, self._teachers(tokens), self.teacher.head, scale)

    def _hidden(self, body: Any, tokens: Tensor) -> Tensor:
        """The student's normed last hidden states (B, L, D), by compiled code where that is asked for."""
        if self._body is None:
            self._body = torch.compile(body, dynamic=False) if self.args.torch_compile else body
        found: Tensor = self._body(input_ids=tokens, use_cache=False).last_hidden_state
        return found

    @torch.no_grad()
    def _teachers(self, tokens: Tensor) -> Tensor:
        """The dense network's normed last hidden states (N, D)."""
        hidden, _ = self.teacher.hidden_states(self.teacher.shape.dense(), Batch.unasked(tokens))
        return self.teacher.normed(hidden).flatten(0, 1)

    def log(self, logs: dict[str, float], *rest: Any) -> None:
        """Log figures, those of the local stage's loss under its own name."""
        if self.state.global_step <= self.local_steps and "loss" in logs:
            logs[LOCAL] = logs.pop("loss")
        super().log(logs, *rest)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """What the student is worth on the selection part."""
        found = {f"eval_{name}": value for name, value in self.measure().items()}
        self.log(found)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found


class Watch(TrainerCallback):
    """Shows where the training stands, and stops one that goes wrong."""

    def __init__(self, tokens_per_step: int, tell: Callable[[Numbers], None]) -> None:
        """`tell` is called with figures and the "tokens" after which they were."""
        self._tokens, self._tell = tokens_per_step, tell
        self._since = (0, 0.0)
        self._losses: list[float] = []
        self._bar: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._since = (state.global_step, time.monotonic())
        total, done = state.max_steps * self._tokens, state.global_step * self._tokens
        self._bar = Progress(total=total, initial=done, desc="recovery", unit="token", unit_scale=True)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._bar.update(self._tokens)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Show the latest figures.

        Raises:
            InputError: the loss is no number, or has risen.
        """
        logs = logs or {}
        shown = {name.removeprefix("eval_"): value for name, value in logs.items() if name in SHOWN}
        if self._bar is not None and shown:
            self._bar.set_postfix_str(", ".join(f"{name} {value:.4f}" for name, value in shown.items()))
        for name in SHOWN:
            if name in logs and not math.isfinite(logs[name]):
                raise InputError(self._advice(state, f"the {name.removeprefix('eval_')} is {logs[name]}"))
        told = {
            name.removeprefix("eval_"): float(value)
            for name, value in logs.items()
            if name != "epoch" and not name.startswith(("train_", "total_"))
        }
        if "loss" in logs or LOCAL in logs:
            told["tokens_per_second"] = self._speed(state)
        self._tell({"tokens": float(state.global_step * self._tokens), **told})
        if "loss" in logs:
            self._losses.append(logs["loss"])
            first, last = sum(self._losses[:LAST]), sum(self._losses[-LAST:])
            if len(self._losses) >= 2 * LAST and last > RISEN * first:
                rose = f"the loss has risen from {first / LAST:.3f} to {last / LAST:.3f} nats a token"
                raise InputError(self._advice(state, rose))

    def _speed(self, state: TrainerState) -> float:
        """Tokens a second since the last time, evaluations and checkpoints in between included."""
        (step, then), now = self._since, time.monotonic()
        self._since = (state.global_step, now)
        return (state.global_step - step) * self._tokens / max(now - then, 1e-9)

    def _advice(self, state: TrainerState, found: str) -> str:
        return (
            f"recovery, step {state.global_step} of {state.max_steps}: {found}; lower "
            "export.recovery.learning_rate, or raise export.recovery.tokens_per_step. Nothing was exported"
        )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._bar.close()
