"""Read a model's tensors out of its files, and refuse values that no network can be run with."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from stages.families import Description
from stages.files import InputError
from stages.sample.weight_files import Stored, damaged


def read_tensors(folder: Path, stored: Stored, dtype: torch.dtype, source: str) -> dict[str, torch.Tensor]:
    """The `stored` tensors of the files in a folder, on the CPU in `dtype`.

    Raises:
        InputError: a file cannot be read, or a value is not finite.
    """
    state: dict[str, torch.Tensor] = {}
    by_file = sorted(stored.items(), key=lambda item: item[1].file)
    for file, members in itertools.groupby(by_file, key=lambda item: folder / item[1].file):
        try:
            with safe_open(file, framework="pt") as opened:
                for name, tensor in members:
                    state[name] = opened.get_tensor(tensor.name).to(dtype)
                    _check_values(state[name], f"{tensor.name} in {file.name}", source)
        except (SafetensorError, OSError) as error:
            raise InputError(damaged(file, error, source)) from error
    return state


def _check_values(tensor: torch.Tensor, where: str, source: str) -> None:
    if tensor.sum(dtype=torch.float32).isfinite():  # takes a twentieth of the time, and may overflow
        return
    nans, infinite = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    if nans or infinite:
        raise InputError(
            f"model.source {source!r}: {nans + infinite} of the {tensor.numel()} values of {where} are not "
            f"finite as {str(tensor.dtype).removeprefix('torch.')} ({nans} NaN, {infinite} infinite); the "
            "weights are damaged, or a training that diverged wrote them: take another checkpoint"
        )


def untie(state: dict[str, torch.Tensor], described: Description, source: str) -> None:
    """Drop the head of a tied model from its tensors, where files hold one all the same.

    Raises:
        InputError: it is not the embedding.
    """
    family = described.family
    head = state.pop(family.head, None) if described.shape.tied_embeddings else None
    if head is not None and not torch.equal(head, state[family.embedding]):
        raise InputError(
            f"model.source {source!r} ties its head to the embedding (tie_word_embeddings), and holds "
            f"another, {family.head}: set tie_word_embeddings to false in config.json if it is meant, as "
            "transformers takes it, or remove it from the file"
        )
