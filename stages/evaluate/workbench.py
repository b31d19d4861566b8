"""A model on a device with its units sorted, and the corpora: what every measuring stage starts from."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from stages.architecture import Architecture
from stages.config.params import Calibration, Measurement, Params, Part, TextProtocol
from stages.evaluate.calibrate.calibration import Calibrator
from stages.evaluate.calibrate.importance import UnitScores
from stages.evaluate.measure import Evaluator
from stages.evaluate.network import checkpoint
from stages.evaluate.network.checkpoint import Checkpoint
from stages.evaluate.network.batch import Batch
from stages.evaluate.network.elastic import ElasticNetwork
from stages.evaluate.network.repair import Repair
from stages.evaluate.text import perplexity
from stages.evaluate.text.corpora import Corpus, Document, Question, load_questions, load_texts
from stages.evaluate.text.selection import Selection, select
from stages.files import InputError

CALIBRATION_BATCH_TOKENS = 2048
"""Fixed, because the grouping decides the last digits of scores and statistics."""


@dataclass(frozen=True)
class Workbench:
    """The opened model and corpora."""

    params: Params
    checkpoint: Checkpoint
    network: ElasticNetwork
    scores: UnitScores
    calibration: Calibrator
    texts: Mapping[str, Corpus[Document]]
    questions: Mapping[str, Corpus[Question]]

    def evaluator(self, part: Part, measurement: Measurement, again: bool = False) -> Evaluator:
        """Measures on one part of the corpora, each architecture repaired `again` if asked for.

        Raises:
            InputError: a corpus is too small for the measurement.
        """
        identity = {
            "model": self.checkpoint.name,
            "weights": self.checkpoint.digest,
            "calibration": self.calibration.key,
            "importance": self.params.evaluate.importance,
            "unit_order": self.scores.digest,
            "reconstruction": self.params.evaluate.reconstruction.identity()
            | ({"again": True} if again else {}),
        }
        return Evaluator(
            self.network,
            chosen(self.checkpoint, self.texts, self.questions, part, measurement),
            identity,
            self.params.evaluate.prefix_cache_mb * 2**20,
            self.repaired_again if again else None,
        )

    def repaired_again(self, architecture: Architecture) -> Repair | None:
        """The second repair of an architecture; the dense one needs none."""
        if architecture == self.network.shape.dense():
            return None
        return self.calibration.repair_again(self.network, self.scores, architecture)


def device_and_dtype(params: Params) -> tuple[torch.device, torch.dtype]:
    """Resolve `auto`: the GPU, in bfloat16 if it has that, where there is one; else the CPU in float32.

    Raises:
        InputError: a GPU is asked for and none is there, its kernels cannot be built, or it has no bfloat16.
    """
    wanted = params.evaluate.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("evaluate.device is 'cuda', but PyTorch finds no GPU; use auto or cpu")
    name = ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
    dtype = params.evaluate.dtype
    if name == "cuda":
        _check_triton()
        # Triton compiles for what the GPU has; PyTorch's emulation of bfloat16 is of no use to it.
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if dtype == "bfloat16" and not has_bfloat16:
            raise InputError(
                f"evaluate.dtype is 'bfloat16', which {torch.cuda.get_device_name()} does not have "
                "(GPUs from Ampere on do); use auto or float32"
            )
        if dtype == "auto":
            dtype = "bfloat16" if has_bfloat16 else "float32"
    return torch.device(name), getattr(torch, "float32" if dtype == "auto" else dtype)


def _check_triton() -> None:
    """Triton, in which the GPU's kernels are written, comes with PyTorch on Linux and compiles C."""
    if not find_spec("triton"):
        raise InputError(
            "the GPU's kernels need the package triton, which is not installed: pip install triton "
            "(on Windows triton-windows), or set evaluate.device to cpu"
        )
    if os.name != "posix":  # Triton for Windows has a compiler of its own
        return
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    if not any(map(shutil.which, compilers)):
        raise InputError(
            f"Triton compiles the GPU's kernels with a C compiler, and {' and '.join(map(repr, compilers))} "
            "cannot be found: install gcc, name another in the environment variable CC (or unset it), or "
            "set evaluate.device to cpu"
        )
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # as Triton does
    header = Path(sysconfig.get_path("include", scheme)) / "Python.h"
    if not header.exists():
        raise InputError(
            f"Triton compiles the GPU's kernels against Python's headers, and {header} is not there: "
            "install python3-dev (python3-devel), or set evaluate.device to cpu"
        )


def calibration_batches(
    loaded: Checkpoint, texts: Mapping[str, Corpus[Document]], section: Calibration
) -> list[Batch]:
    """Windows of the texts' calibration parts, spread evenly over the texts.

    Raises:
        InputError: a text is too short.
    """
    protocol = TextProtocol("\n\n", section.sequence_length, section.sequence_length, "none")
    perplexity.check_context(protocol, loaded.context_tokens)
    rows = []
    for index, (name, text) in enumerate(texts.items()):
        count = section.samples // len(texts) + (index < section.samples % len(texts))
        if count:
            where = f"corpora.texts.{name}, part calibration,"
            documents = text.parts["calibration"]
            rows.append(perplexity.windows(documents, loaded.tokenizer, protocol, count, where).tokens)
    return perplexity.batches(torch.cat(rows), CALIBRATION_BATCH_TOKENS)


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
    params: Params, scores_path: Path, needed: Sequence[tuple[Part, Measurement]] = ()
) -> Workbench:
    """Load model and corpora, sort the units by importance, and set up the repair.

    That the corpora suffice for the `needed` measurements, those of later stages too, is checked
    before anything expensive starts. Scores at `scores_path` are used if they were computed from the
    same things; otherwise they are computed and written there.

    Raises:
        InputError: anything that `params` names is missing, empty, too short or unsupported.
    """
    texts = load_texts(params.corpora)
    questions = load_questions(params.corpora)
    device, dtype = device_and_dtype(params)
    loaded = checkpoint.load(params.model, dtype)
    for part, measurement in needed:
        chosen(loaded, texts, questions, part, measurement)
    network = ElasticNetwork(loaded, device)
    calibration = Calibrator(
        params, loaded, network, calibration_batches(loaded, texts, params.evaluate.calibration)
    )
    scores = calibration.scores(scores_path)
    network.sort(scores.order())
    network.repair = calibration.repair(network, scores)
    return Workbench(params, loaded, network, scores, calibration, texts, questions)
