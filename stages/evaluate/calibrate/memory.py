"""What a measuring stage holds and where it lies, computed from the shape before anything is loaded.

The network stays on the device, and beside it what the widest of the phases needs that come one after the
other. What is left of the device's memory goes to the repair's whitenings, those of the first sites first;
the others lie in host memory, and where that ends in a file below the cache folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import torch

from stages.architecture import ModelShape
from stages.config.choices import IMPORTANCES, REPAIRS
from stages.config.params import Evaluate
from stages.evaluate.calibrate.conversations import ANSWER, AROUND, AT_ONCE, TURN
from stages.evaluate.calibrate.second_repair import kept_bytes, solving_bytes, waiting_bytes
from stages.evaluate.calibrate.whitening import Room, elements, orders_of
from stages.evaluate.network.device import FITS
from stages.evaluate.network.fused import VOCABULARY_AT_ONCE
from stages.files import cache_folder

SPARE = {"cpu": 0.5, "cuda": 0.9}
"""The part of a memory that is planned with: kernels' workspaces, fragments and other programs take some."""
HOST_PART = 0.5
"""The part of the host memory that is free at the start which whitenings may take beside a GPU's."""
PINNED = 1.5
"""What pinned memory takes of a byte that waits in it: it comes in powers of two, and none is given back."""
WAITING = "hidden states and activations that wait"
_PROJECTIONS = "repaired projections of an architecture"
_LEAST_PROJECTIONS = 2**28
"""Bytes of projections that are held at least, from one architecture to the next."""


@dataclass(frozen=True)
class Texts:
    """Tokens that are run: of the calibration text, of all of the largest measurement, and at once."""

    calibration: int
    calibration_batch: int
    measured: int
    batch: int
    predictions: int
    """Predictions whose logits are held at once."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by what holds them: through all of a stage, and in each phase.

    `whitenings` are the repair's, in all; `device_bytes` may be taken, of which the rest is theirs.
    """

    always: Mapping[str, float]
    phases: Mapping[str, Mapping[str, float]]
    whitenings: float
    device_bytes: float
    host_bytes: float
    folder: Path
    beside: Mapping[str, float] = field(default_factory=dict)
    """Bytes in host memory beside a GPU's, but for whitenings, while weights of an own are made."""

    @property
    def widest(self) -> str:
        """The phase that holds most; the phases come one after the other."""
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()))

    @property
    def needed(self) -> float:
        """Bytes on the device without a whitening."""
        return sum(self.always.values()) + sum(self.phases[self.widest].values())

    @property
    def held(self) -> float:
        """Bytes on the device, whitenings included."""
        return self.needed + self.on_device

    @property
    def projections(self) -> int:
        """Most bytes of repaired projections that are held."""
        return int(self.always.get(_PROJECTIONS, 0))

    @property
    def on_device(self) -> float:
        """Bytes of whitenings on the device."""
        return min(self.whitenings, max(0.0, self.device_bytes - self.needed))

    @property
    def in_host_memory(self) -> float:
        return min(self.whitenings - self.on_device, self.host_bytes)

    @property
    def on_disk(self) -> float:
        return self.whitenings - self.on_device - self.in_host_memory

    @property
    def room(self) -> Room:
        return Room(int(self.on_device), int(self.host_bytes), self.folder)


def memory_plan(
    shape: ModelShape,
    section: Evaluate,
    texts: Texts,
    device: str,
    each: int,
    device_bytes: float,
    host_bytes: float,
    folder: Path | None = None,
    own_weights: int = 0,
) -> MemoryPlan:
    """The plan of one measuring stage, of elements of `each` bytes.

    Of one that makes weights of their own too, for so many architectures in all: `own_weights`.

    What fits nowhere else goes into `folder`, by default the calibration's in the cache folder.
    """
    sizes = {site: elements(shape, site) for site in shape.sites()}
    widest, layer = max(sizes.values()), max(shape.layer_parameters)
    shared = min(section.prefix_cache_mb * 2**20, shape.layers * texts.measured * shape.hidden * each)
    columns, logit = shape.vocabulary, each  # a GPU's kernel reads them as they are
    if device == "cpu":
        columns, logit = min(VOCABULARY_AT_ONCE, shape.vocabulary), each + 8
    of_batch = texts.calibration_batch * each * (shape.hidden * (shape.layers + 8) + 6 * widest)
    phases: dict[str, dict[str, float]] = {
        "measuring": {
            "hidden states in common": shared,
            "activations of a batch": texts.batch * (3 * shape.channels + 6 * shape.hidden) * each,
            "logits": texts.predictions * columns * logit,
        }
    }
    if section.calibration.conversations:
        of_token = 2 * shape.layers * shape.kv_groups * shape.head_dim * each
        phases["conversations"] = {
            "keys and values": AT_ONCE * (TURN + ANSWER + AROUND) * of_token,
            "logits, sorted": AT_ONCE * shape.vocabulary * 4 * 4,
        }
    importance, repair = IMPORTANCES[section.importance], REPAIRS[section.reconstruction.method]
    if held := importance.held_bytes(shape, texts.calibration, texts.calibration_batch, each):
        phases["scoring"] = {"states, gradients and logits": held}
    if importance.by_statistics or repair.by_statistics:
        phases["calibration"] = {
            "hidden states": texts.calibration * shape.hidden * each,
            "activations of a batch": texts.calibration_batch * 8 * widest * 4,
            "a layer in the checkpoint's order": layer * each,
            "a site's Gram matrix and its factor": widest**2 * (4 + 4 * 8),
        }
    if section.curvature_tokens:
        phases["damage curves"] = {
            "hidden states and gradients of a batch": of_batch + texts.calibration_batch * 6 * widest * 4,
            "a layer's gradients and weights in float32": layer * each + 4 * shape.hidden * widest,
            "two whitenings": 2 * 4 * widest**2 * repair.by_statistics,
        }
    copies = 2 if device == "cpu" else 1  # as they were loaded, and sorted by importance
    always: dict[str, float] = {"weights" + copies // 2 * ", twice": copies * shape.total_parameters * each}
    whitenings = 0.0
    if repair.by_statistics:
        projections = shape.hidden * sum(sizes.values())
        always[_PROJECTIONS] = max(_LEAST_PROJECTIONS, projections * each)
        whitenings = 4.0 * sum(len(list(orders_of(shape, site))) * n**2 for site, n in sizes.items())
        phases["measuring"]["repair of a projection"] = 4 * (widest**2 + 3 * shape.hidden * widest)
    if own_weights and device == "cpu":
        always["weights of an architecture's own"] = shape.total_parameters * each
    elif own_weights:
        outside = shape.vocabulary * shape.hidden * (1 if shape.tied_embeddings else 2)
        always["embedding and head once more, in float32 too"] = outside * (each + 4)
        # Layers are read in float32, ordered and cut one by one; so much was enough for 8B on a bounded H200.
        always["layers while weights of its own are made"] = always.get(_PROJECTIONS, 0.0)
        phases["second repair"] = {
            "solving a site": solving_bytes(shape),
            "activations of a batch": texts.calibration_batch * 8 * widest * 4,
        }
    folder = folder or cache_folder() / "calibration"
    found = MemoryPlan(always, phases, whitenings, device_bytes, host_bytes, folder)
    if not own_weights or device == "cpu":
        return found
    refitted = float(kept_bytes(shape))
    together = own_weights if own_weights * refitted <= section.cache_mb * 2**20 else 1
    beside = {
        "weights of an architecture's own": float(shape.total_parameters * each),
        "refitted projections in float32": together * refitted,
    }
    waiting = waiting_bytes(shape, texts.calibration, together, each)
    left = device_bytes - sum(always.values()) - found.on_device
    if waiting + solving_bytes(shape) > FITS * left:
        beside[WAITING] = PINNED * waiting
    return replace(found, beside=beside)


def memory_at_hand(device: torch.device, limit_gib: float | None, sharing: int = 1) -> tuple[float, float]:
    """Bytes that may be taken now on the device and, beside a GPU's, in host memory, by one of `sharing`.

    More of a GPU's is refused from here on, so that its limit holds.
    """
    free = psutil.virtual_memory().available / sharing
    if device.type == "cpu":
        return free * SPARE["cpu"], 0.0
    on_device, whole = torch.cuda.mem_get_info(device)
    limit = on_device if limit_gib is None else min(on_device, limit_gib * 2**30)
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / whole))  # of the current device
    return limit * SPARE["cuda"], free * HOST_PART
