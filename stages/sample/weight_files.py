"""What a model's weight files hold, by their headers: names, shapes and types, without weights or torch."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open

from stages.config.params import ModelSection
from stages.files import InputError, unreadable
from stages.sample.hub import refusal
from stages.sample.source import ModelSource, refuse_adapter

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
WRAPPERS = {
    "_orig_mod": "torch.compile",
    "module": "DataParallel",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
"""What wraps a module, or a part of it, leaves its name within those of the tensors."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a file's header tells of it."""

    file: str
    """The file's name in the model's folder."""
    name: str
    """Its name in the file, which may be a wrapped one."""
    dtype: str
    """Its type as safetensors calls it: F32, BF16, F8_E4M3, …"""
    shape: tuple[int, ...]


Stored = Mapping[str, StoredTensor]
"""Tensors by their names without wrappers."""


@functools.cache
def note(line: str) -> None:
    """Say a line once."""
    print(f"note: {line}", flush=True)


def stored_tensors(source: ModelSource, model: ModelSection) -> Stored | None:
    """The tensors of a located folder, of a GGUF file once it is dequantised, or of the hub if they have not
    been fetched; None if nothing tells.

    Raises:
        InputError: as `weight_files`, `read_headers` and `gguf_header.tensors`.
    """
    if source.kind == "gguf":
        return _of_gguf(source.path)
    if source.kind == "hub" and not is_fetched(source.path):
        return _of_the_hub(model)
    return read_headers(weight_files(source.path, model.source), model.source)


def weight_files(folder: Path, source: str) -> list[Path]:
    """The files that hold the model, in transformers' order of preference.

    A hub folder may hold its weights twice, such as shards and a `consolidated.safetensors`.

    Raises:
        InputError: there are none, the folder is an adapter's, or the index is damaged or names what is not
            there.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file() or single.is_symlink():
        if set(_named_by(index).values()) - {SINGLE}:
            note(
                f"model.source {source!r} holds its weights twice: {SINGLE} is read, as by transformers, "
                f"and the files that {INDEX} names are not"
            )
        return [single]
    if index.is_file() or index.is_symlink():
        return [folder / file for file in sorted(set(_weight_map(folder, source).values()))]
    refuse_adapter(folder, source)
    if files := sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith(".")):
        return files
    raise InputError(
        f"model.source {source!r} has no *.safetensors in {folder.name}; other formats are not "
        "read, because loading a pickle runs code. Convert it with save_pretrained"
    )


def _weight_map(folder: Path, source: str) -> dict[str, str]:
    """The file of each tensor by the index, every one of which is there."""
    again = "fetch the folder again"
    if reason := unreadable(folder / INDEX):
        raise InputError(f"model.source {source!r}: {INDEX} {reason}; {again}")
    try:
        named = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(named.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"model.source {source!r}: {INDEX} is damaged ({error!r}); {again}") from error
    if odd := [file for file in files if not _is_plain(file)]:
        raise InputError(
            f"model.source {source!r}: {INDEX} is damaged: it names the file {odd[0]!r}; expected names "
            f"of *.safetensors files beside it; {again}"
        )
    missing = [file for file in files if not (folder / file).exists() and not (folder / file).is_symlink()]
    if missing:
        raise InputError(
            f"model.source {source!r} lacks {len(missing)} of the {len(files)} files that {INDEX} names, "
            f"the first is {missing[0]}; {again}"
        )
    return dict(named)


def _is_plain(file: Any) -> bool:
    return isinstance(file, str) and PurePosixPath(file).name == file and file.endswith(".safetensors")


def read_headers(files: Iterable[Path], source: str) -> Stored:
    """What the headers of a folder's files say, with the prefixes of wrappers taken off.

    Raises:
        InputError: a file cannot be read, two tensors have one name, or the index names another file than the
            one that holds a tensor.
    """
    files = list(files)
    found = [tensor for file in files for tensor in _header(file, source)]
    if files and files[0].name != SINGLE and (files[0].parent / INDEX).is_file():
        _compare_with_index(found, _weight_map(files[0].parent, source), source)
    return _by_name(found, source)


def _header(file: Path, source: str) -> list[StoredTensor]:
    if reason := unreadable(file):
        raise InputError(f"model.source {source!r}: the weight file {file} {reason}")
    try:
        with safe_open(file, framework="numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118, no mapping
            return [
                StoredTensor(file.name, name, str(part.get_dtype()), tuple(part.get_shape()))
                for name, part in slices.items()
            ]
    except (SafetensorError, OSError) as error:
        raise InputError(damaged(file, error, source)) from error


def damaged(file: Path, error: Exception, source: str) -> str:
    """The message for a weight file that safetensors does not read."""
    itself = file.resolve() if file.is_symlink() else "it"
    return (
        f"model.source {source!r}: {file} is damaged, perhaps cut short ({file.stat().st_size} bytes; "
        f"{error}). Delete {itself} and fetch or write it again; one in the cache folder is "
        "made anew once its folder is deleted"
    )


def _compare_with_index(found: Iterable[StoredTensor], named: Mapping[str, str], source: str) -> None:
    held = {(tensor.name, tensor.file) for tensor in found}
    wrong = [item for item in named.items() if item not in held]
    unnamed = sorted(name for name, _ in held if name not in named)
    if wrong:
        name, file = wrong[0]
        holders = sorted(other for tensor, other in held if tensor == name)
        raise InputError(
            f"model.source {source!r}: {INDEX} says that {file} holds {name}, which "
            f"{' and '.join(holders) or 'no file'} holds ({len(wrong)} such tensors); fetch the folder again"
        )
    if unnamed:
        raise InputError(
            f"model.source {source!r}: the files that {INDEX} names hold {len(unnamed)} tensors that it does "
            f"not name, the first is {unnamed[0]}; fetch the folder again"
        )


def _by_name(found: Iterable[StoredTensor], source: str) -> Stored:
    stored: dict[str, StoredTensor] = {}
    wrapped: dict[str, int] = {}
    for tensor in found:
        parts = tensor.name.split(".")
        name = ".".join(part for part in parts if part not in WRAPPERS)
        for part in {part for part in parts if part in WRAPPERS}:
            wrapped[part] = wrapped.get(part, 0) + 1
        if name in stored:
            first = stored[name]
            raise InputError(
                f"model.source {source!r} has two tensors {name}: {first.name} in {first.file}, and "
                f"{tensor.name} in {tensor.file}; remove the file or tensor that is not the model's"
            )
        stored[name] = tensor
    for part, count in wrapped.items():
        note(
            f"model.source {source!r}: {part}. is taken off the names of {count} tensors; {WRAPPERS[part]} "
            "puts it there"
        )
    return stored


def _of_gguf(path: Path) -> Stored:
    from stages.sample import gguf_header

    found = gguf_header.tensors(gguf_header.read_header(path))
    return {
        name: StoredTensor(path.name, tensor.name, "F32", tuple(tensor.shape.tolist()[::-1]))
        for name, tensor in found.items()
    }


def is_fetched(folder: Path) -> bool:
    """Whether the hub's cache holds all the weights of a snapshot, by their names or their index."""
    index = folder / INDEX
    if (folder / SINGLE).is_file() or not index.is_file():
        return (folder / SINGLE).is_file()
    files = set(_named_by(index).values())
    return all((folder / file).is_file() for file in files)


def _named_by(index: Path) -> dict[str, str]:
    """The file of each tensor by an index, which may be missing or damaged: then it names none."""
    try:
        return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _of_the_hub(model: ModelSection) -> Stored | None:
    from huggingface_hub import get_safetensors_metadata

    try:
        told = get_safetensors_metadata(model.source, revision=model.revision)
    except Exception as error:
        note(
            f"the hub does not tell which tensors {model.source!r} has ({refusal(error, model)}). `evaluate` "
            "compares them with its configuration when it fetches them"
        )
        return None
    return _by_name(
        (
            StoredTensor(file, name, str(tensor.dtype), tuple(tensor.shape))
            for file, header in told.files_metadata.items()
            for name, tensor in header.tensors.items()
        ),
        model.source,
    )
