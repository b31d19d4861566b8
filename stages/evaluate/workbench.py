"""A model on a device with its units sorted, and the corpora: what every measuring stage starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from stages.architecture import Architecture
from stages.config.choices import EXECUTORS
from stages.config.params import Calibration, Measurement, Params, Part, TextProtocol
from stages.evaluate.calibrate.calibration import Calibrator
from stages.evaluate.calibrate.conversations import Conversations, conversations
from stages.evaluate.calibrate.memory import Texts, memory_at_hand, memory_plan
from stages.evaluate.measure.evaluator import TOKENS_PER_BATCH, Evaluator
from stages.evaluate.measure.executors import Executor
from stages.evaluate.network import checkpoint
from stages.evaluate.network.batch import Batch
from stages.evaluate.network.checkpoint import Checkpoint
from stages.evaluate.network.decoder import PREDICTIONS_AT_ONCE
from stages.evaluate.network.device import device_and_dtype
from stages.evaluate.network.elastic import DenseNetwork, ElasticNetwork
from stages.evaluate.network.repair import Repair
from stages.evaluate.network.weights import PrunedWeights, State
from stages.evaluate.results import context
from stages.evaluate.text import perplexity
from stages.evaluate.text.corpora import Corpus, Document, Question, load_questions, load_texts
from stages.evaluate.text.prompts import check_prompts
from stages.evaluate.text.selection import Selection, select
from stages.files import InputError

SCORES, CONVERSATIONS = "importance.safetensors", "conversations.json"
KEPT = (SCORES, CONVERSATIONS)
"""What opening a model makes once, and reads from then on."""
CALIBRATION_BATCH_TOKENS = 2048
"""Fixed, because the grouping decides the last digits of scores and statistics."""


@dataclass(frozen=True)
class Workbench:
    """The opened model and corpora."""

    params: Params
    checkpoint: Checkpoint
    conversations: Conversations
    network: ElasticNetwork
    repair: Repair
    calibration: Calibrator
    texts: Mapping[str, Corpus[Document]]
    questions: Mapping[str, Corpus[Question]]
    executor: Executor

    def evaluator(self, part: Part, measurement: Measurement, texts_alone: bool = False) -> Evaluator:
        """Measures on one part of the corpora, or of the texts among them alone.

        Raises:
            InputError: a corpus is too small for the measurement.
        """
        questions = {} if texts_alone else self.questions
        selection = chosen(self.checkpoint, self.texts, questions, part, measurement)
        cache_bytes = self.params.evaluate.prefix_cache_mb * 2**20
        return Evaluator(self.network, self.repair, selection, self.identity, cache_bytes)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the tensors of a prefix view, besides its widths: no name and no path."""
        return {
            "weights": self.checkpoint.digest,
            "calibration": self.calibration.key,
            "importance": self.params.evaluate.importance,
            "unit_order": self.network.order.digest,
            "reconstruction": dict(self.repair.identity),
        }

    def weights(self, architecture: Architecture, again: bool) -> PrunedWeights:
        """An architecture's weights: cut from the model's files, repaired, and `again` if that is asked for.

        The dense architecture has nothing to repair.
        """

        def cut(dtype: torch.dtype) -> State:
            return self.exact.sliced_state(architecture, self.repair.on(self.exact), dtype)

        once = PrunedWeights(architecture, ({"cut": self.identity},), cut)
        return self.repaired_again([once])[0] if again else once

    def repaired_again(self, once: Sequence[PrunedWeights]) -> list[PrunedWeights]:
        """The second repair of weights, made together where one is made; the dense ones are as they were."""
        dense = self.network.shape.dense()
        pruned = [weights for weights in once if weights.architecture != dense]
        made = iter(self.calibration.repair_again(self.network, self.repair, pruned, self.exact))
        return [weights if weights.architecture == dense else next(made) for weights in once]

    @cached_property
    def exact(self) -> ElasticNetwork:
        """The network in float32: exports are cut from it, whatever dtype measured them.

        Raises:
            InputError: the model's files are not those that were opened.
        """
        if self.network.dtype == torch.float32:
            return self.network
        if checkpoint.digest_of(self.params.model) != self.checkpoint.digest:
            raise InputError(
                f"model.source {self.checkpoint.name!r} was replaced while this stage ran; run it again"
            )
        return ElasticNetwork.exact(self.checkpoint, self.network.order, self.network.device)


class ReadsText(Protocol):
    """What reads text: a tokenizer, and how many tokens its model was made for."""

    @property
    def tokenizer(self) -> Any: ...
    @property
    def context_tokens(self) -> int: ...


def calibration_windows(
    loaded: ReadsText, texts: Mapping[str, Corpus[Document]], section: Calibration, measured: TextProtocol
) -> Tensor:
    """Windows (W, L) of the texts' calibration parts, spread evenly over the texts.

    A model that is `measured` with a BOS in each window is calibrated so too.

    Raises:
        InputError: a text is too short.
    """
    protocol = measured.apart("\n\n", section.sequence_length)
    perplexity.check_context(protocol, loaded.context_tokens)
    rows = []
    for index, (name, text) in enumerate(texts.items()):
        count = section.samples // len(texts) + (index < section.samples % len(texts))
        if count:
            where = f"corpora.texts.{name}, part calibration,"
            documents = text.parts["calibration"]
            keys = "evaluate.calibration.samples or its sequence_length"
            rows.append(perplexity.windows(documents, loaded.tokenizer, protocol, count, where, keys).tokens)
    return torch.cat(rows)


def _conversation_windows(
    loaded: ReadsText, chats: Sequence[str], section: Calibration, measured: TextProtocol
) -> Tensor:
    """Windows (W, L) of conversations, which begin and end as their template says."""
    documents = [Document(str(number), text) for number, text in enumerate(chats)]
    protocol = measured.apart("", section.sequence_length)
    where, keys = "the dense model's conversations", "evaluate.calibration.conversations"
    count = section.conversations
    return perplexity.windows(documents, loaded.tokenizer, protocol, count, where, keys).tokens


def _tokens(batches: Sequence[Batch], selections: Sequence[Selection], device: torch.device) -> Texts:
    most = TOKENS_PER_BATCH[device.type]
    measured = max((selection.tokens for selection in selections), default=most)
    return Texts(
        calibration=sum(batch.tokens.numel() for batch in batches),
        calibration_batch=max(batch.tokens.numel() for batch in batches),
        measured=measured,
        batch=min(measured, most),
        predictions=min(measured, PREDICTIONS_AT_ONCE[device.type]),
    )


def chosen(
    loaded: Checkpoint,
    texts: Mapping[str, Corpus[Document]],
    questions: Mapping[str, Corpus[Question]],
    part: Part,
    measurement: Measurement,
) -> Selection:
    """`select` for a model: its tokenizer and its context."""
    return select(texts, questions, part, loaded.tokenizer, measurement, loaded.context_tokens)


def open_workbench(
    params: Params,
    folder: Path,
    needed: Sequence[tuple[Part, Measurement]] = (),
    measured: Path | None = None,
    sharing: int = 1,
    prompts: Sequence[str] = (),
    own_weights: int = 0,
) -> Workbench:
    """Load model and corpora, sort the units by importance, and set up the repair.

    That the corpora suffice for the `needed` measurements and the tokenizer takes the `prompts`, those of
    later stages too, is checked before anything expensive starts. The scores and conversations in `folder`
    are used if they were made of the same things; otherwise they are made and written there. `measured` is
    the context.json of what the caller goes on from: the model must be the one that was measured there, and
    the conversations those that calibrated it. So many processes are `sharing` the host's memory. Room is
    kept for an architecture's own weights, where some are made: of `own_weights` architectures.

    Raises:
        InputError: anything that `params` names is missing, empty, too short or unsupported, or the
            model's weights are not those of `measured`.
    """
    if measured is not None:
        context.require_weights(measured, checkpoint.digest_of(params.model), params.model.source)
    executor: Executor = EXECUTORS[params.evaluate.executor](params)
    texts = load_texts(params.corpora)
    questions = load_questions(params.corpora)
    device, dtype = device_and_dtype(params.evaluate)
    memory = memory_at_hand(device, params.evaluate.gpu_memory_gib, sharing)
    loaded = checkpoint.load(params.model, dtype)
    selections = [chosen(loaded, texts, questions, *asked) for asked in needed]
    check_prompts(loaded.tokenizer, prompts, loaded.context_tokens)
    section, measured_by = params.evaluate.calibration, params.evaluate.measurement.text
    rows = calibration_windows(loaded, texts, section, measured_by)
    chats = conversations(loaded, device, section, folder / CONVERSATIONS, may_write=measured is None)
    if chats.calibration:
        rows = torch.cat((rows, _conversation_windows(loaded, chats.calibration, section, measured_by)))
    batches = perplexity.batches(rows, CALIBRATION_BATCH_TOKENS)
    plan = memory_plan(
        loaded.shape,
        params.evaluate,
        _tokens(batches, selections, device),
        device.type,
        dtype.itemsize,
        *memory,
        own_weights=own_weights,
    )
    calibration = Calibrator(params.evaluate, loaded, device, batches, plan)
    dense = DenseNetwork(loaded, device)
    order = calibration.scores(folder / SCORES, dense).order()
    network = dense.sorted(order, keep=False)
    repair = calibration.repair(network)
    return Workbench(params, loaded, chats, network, repair, calibration, texts, questions, executor)
