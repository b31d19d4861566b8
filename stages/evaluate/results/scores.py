"""Importance scores of all units, the order that they give, and the file that keeps them. No torch.

`evaluate` writes the file, importance.safetensors; the features of architectures are made of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from stages.architecture import ModelShape
from stages.evaluate.results import tensor_file
from stages.files import DamagedError, InputError, atomically

NAMES = ("heads", "groups", "channels")
Array = NDArray[np.float32]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class UnitOrder:
    """The order of units by falling importance, as indices into the checkpoint's units.

    groups (layers, G); heads (layers, G, H), row r for the group that comes r-th; channels (layers, C).
    Where layers have unlike numbers of units, those that a layer has not come last.
    """

    groups: Indices
    heads: Indices
    channels: Indices

    @property
    def inverse(self) -> UnitOrder:
        """The order that puts units which stand in this one back."""
        groups = np.argsort(self.groups, axis=-1)
        heads = np.take_along_axis(np.argsort(self.heads, axis=-1), groups[..., None], axis=1)
        return UnitOrder(groups, heads, np.argsort(self.channels, axis=-1))

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of the order: with the weights it decides every pruned model's value."""
        found = hashlib.sha256()
        for part in (self.groups, self.heads, self.channels):
            found.update(part.tobytes())
        return found.hexdigest()[:16]


@dataclass(frozen=True)
class UnitScores:
    """Scores in the checkpoint's own order of units; larger matters more.

    heads (layers, G, H): query heads, with their rows of q and columns of o;
    groups (layers, G): what a KV group adds of its own, the rows of k and v;
    channels (layers, C): rows of gate and up, columns of down.
    Where layers have unlike numbers of units, those that a layer has not have no score: NaN.
    """

    heads: Array
    groups: Array
    channels: Array

    @classmethod
    def of(cls, heads: Any, groups: Any, channels: Any) -> UnitScores:
        """Scores from arrays or tensors on the CPU, in any precision."""
        return cls(*(np.asarray(part, dtype=np.float32) for part in (heads, groups, channels)))

    @classmethod
    def of_layers(
        cls, shape: ModelShape, heads: Sequence[Any], groups: Sequence[Any], channels: Sequence[Any]
    ) -> UnitScores:
        """Scores of each layer's heads (g, h), groups (g,) and channels (c,), of as many as it has."""
        most = shape.kv_groups, shape.heads_per_group, shape.channels
        parts = ((heads, most[:2]), (groups, most[:1]), (channels, most[2:]))
        made = [np.full((shape.layers, *size), np.nan, np.float32) for _, size in parts]
        for whole, (part, _) in zip(made, parts, strict=True):
            for row, own in zip(whole, part, strict=True):
                found = np.asarray(own, np.float32)
                if found.size:
                    row[tuple(map(slice, found.shape))] = found
        return cls(*made)

    def of_units(self, shape: ModelShape) -> UnitScores:
        """These scores, of which units that a layer of the model has not have none."""
        layers = range(shape.layers)
        return UnitScores.of_layers(
            shape,
            [self.heads[i, : shape.widths[i][0], : shape.widths[i][1]] for i in layers],
            [self.groups[i, : shape.widths[i][0]] for i in layers],
            [self.channels[i, : shape.widths[i][2]] for i in layers],
        )

    def finite(self, shape: ModelShape) -> bool:
        """Whether every unit of the model has a finite score."""
        widths = shape.widths
        counts = sum(g * h for g, h, _ in widths), sum(g for g, *_ in widths), sum(c for *_, c in widths)
        return counts == tuple(int(np.isfinite(p).sum()) for p in (self.heads, self.groups, self.channels))

    def order(self) -> UnitOrder:
        """Units by falling score; ties keep the checkpoint's order, so the order is reproducible.

        A group counts with its heads. Those without a score come last.
        """
        groups = _falling(self.groups + np.nansum(self.heads, axis=-1))
        heads = np.take_along_axis(_falling(self.heads), groups[..., None], axis=1)
        return UnitOrder(groups, heads, _falling(self.channels))

    def sorted(self) -> UnitScores:
        """The scores in their own order: row r of `heads` belongs to the group that comes r-th.

        Units that a layer has not have 0.
        """
        order = self.order()
        heads = np.take_along_axis(self.heads, order.groups[..., None], axis=1)
        return UnitScores(
            np.nan_to_num(np.take_along_axis(heads, order.heads, axis=2)),
            np.nan_to_num(np.take_along_axis(self.groups, order.groups, axis=1)),
            np.nan_to_num(np.take_along_axis(self.channels, order.channels, axis=1)),
        )

    def save(self, path: Path, key: str) -> None:
        """Write the scores under `key`, a digest of what they were computed from; whole or not at all.

        Raises:
            InputError: the disk does not take the file.
        """
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in NAMES}
        with atomically(path) as temporary:
            temporary.write_bytes(tensor_file.sealed(save(tensors, {"key": key})))

    @classmethod
    def load(cls, path: Path, key: str) -> UnitScores | None:
        """Read what `save` wrote, or None if there is no file or it was computed from something else.

        Raises:
            DamagedError: the file is damaged.
        """
        if not path.is_file():
            return None
        found, scores = cls._read(path)
        return scores if found == key else None

    @classmethod
    def of_model(cls, path: Path, shape: ModelShape) -> UnitScores:
        """Read the scores that `evaluate` left, whatever they were computed from.

        Raises:
            InputError: the file is missing, damaged, or another model's.
        """
        if not path.is_file():
            raise InputError(f"{path} is not there; run `dvc repro evaluate` to make it")
        _, scores = cls._read(path)
        expected = (shape.layers, shape.channels)
        if scores.channels.shape != expected:
            raise InputError(
                f"{path} has scores of {scores.channels.shape} layers and channels; expected {expected}. "
                "It belongs to another model: run `dvc repro evaluate`"
            )
        return scores

    @classmethod
    def _read(cls, path: Path) -> tuple[str | None, UnitScores]:
        again = "delete it and run `dvc repro evaluate`"
        try:
            raw = path.read_bytes()
            key = tensor_file.metadata_of(raw).get("key")
            tensors = load(raw)
            return key, cls(*(tensors[name] for name in NAMES))
        except OSError as error:
            raise InputError(
                f"{path} cannot be read ({error.strerror}); make it readable, or {again}"
            ) from error
        except (LookupError, ValueError) as error:
            raise DamagedError(f"{path} is damaged ({error})", again) from error


def _falling(scores: Array) -> Indices:
    return np.argsort(-scores, axis=-1, kind="stable")
