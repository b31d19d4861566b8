"""A GGUF file becomes a folder in Hugging Face's format, once: dequantised, in the cache folder.

The folder is made whole or not at all, and a manifest has the digest of each of its files: one that is not as
it was written is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.gguf_reader import ReaderTensor
from gguf.quants import dequantize
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from stages.families import llama_cpp
from stages.files import InputError, cache_folder, read_json, write_json
from stages.locks import exclusive
from stages.sample import gguf_header
from stages.sample.digests import file_digest
from stages.sample.gguf_header import Header

MANIFEST, SCHEMA, VERSION = "prunecast.json", "prunecast.dequantised", 1
_METADATA = {"format": "pt"}  # transformers insists on it
_PART = ".part"


def dequantised(path: Path) -> Path:
    """The folder in the cache that holds a GGUF file's model as float32 safetensors.

    Raises:
        InputError: the file is damaged or holds what cannot be rebuilt, or the cache cannot be written.
    """
    header = gguf_header.read_header(path)
    whole = hashlib.sha256(b"".join(bytes.fromhex(file_digest(part)) for part in header.parts)).hexdigest()
    models = cache_folder() / "models"
    folder = models / f"{gguf_header.stem(path)}-{whole[:12]}"
    try:
        models.mkdir(parents=True, exist_ok=True)
        _sweep(models)
        with exclusive(_lock_of(folder)):
            if folder.exists() and (damage := _damage(folder)):
                print(f"note: {folder} {damage}: it is made anew", flush=True)
                shutil.rmtree(folder)
            if not folder.exists():
                _make(header, folder)
    except OSError as error:
        needed = 4e-9 * sum(int(tensor.n_elements) for tensor in header.tensors.values())
        raise InputError(
            f"{path} cannot be dequantised into {models} ({error.strerror or error}): about {needed:.1f} GB "
            "are needed there. Make room, or let the environment variable PRUNECAST_CACHE name a folder that "
            "can be written"
        ) from error
    return folder


def _make(header: Header, folder: Path) -> None:
    name = header.path.name
    print(f"Dequantising {name} to safetensors, once (about half a minute)", flush=True)
    temporary = folder.with_name(f".{folder.name}{_PART}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        convert(header, temporary)
        files = {file.name: file_digest(file) for file in sorted(temporary.iterdir())}
        write_json(temporary / MANIFEST, SCHEMA, VERSION, {"files": files})
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def convert(header: Header, folder: Path) -> None:
    """Write the model into a folder: weights in float32, configuration and tokenizer.

    Raises:
        InputError: the file sets or holds what cannot be rebuilt.
    """
    settings = gguf_header.configuration(header)
    gguf_header.check_tokens(header)
    head_dim = settings["head_dim"]
    state = {
        name: torch.from_numpy(_values(tensor, header.architecture, head_dim))
        for name, tensor in gguf_header.tensors(header).items()
    }
    _save(state, folder / "model.safetensors")
    config = AutoConfig.for_model(**settings)
    config.dtype = torch.float32
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[settings["model_type"]]]
    config.save_pretrained(folder)
    GenerationConfig.from_model_config(config).save_pretrained(folder)
    tokenizer(header).save_pretrained(folder)
    _drop_foreign_tokens(folder / "tokenizer.json", settings["vocab_size"])


def tokenizer(header: Header) -> Any:
    """The file's tokenizer, as transformers rebuilds it.

    Raises:
        InputError: transformers cannot.
    """
    path = header.path
    try:
        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:  # whatever its fields lead transformers to
        raise InputError(
            f"{path} has a tokenizer that transformers cannot rebuild ({type(error).__name__}: {error}); "
            "give the model in Hugging Face's format"
        ) from error


def _drop_foreign_tokens(path: Path, rows: int) -> None:
    """Take out what transformers adds of its own (GPT-2's end of text) beyond the file's tokens."""
    found = json.loads(path.read_text(encoding="utf-8"))
    kept = [token for token in found["added_tokens"] if token["id"] < rows]
    if kept != found["added_tokens"]:
        found["added_tokens"] = kept
        path.write_text(json.dumps(found, ensure_ascii=False, indent=2), encoding="utf-8")


def _values(tensor: ReaderTensor, architecture: str, head_dim: int) -> np.ndarray[Any, Any]:
    """A tensor in float32, as transformers has it: rows of queries and keys (heads * d, ...), norms."""
    found = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
    if architecture in llama_cpp.INTERLEAVED and tensor.name.split(".")[2:3] in (["attn_q"], ["attn_k"]):
        pairs = found.reshape(-1, head_dim // 2, 2, *found.shape[1:])
        found = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(found.shape)
    if tensor.name.endswith("norm.weight"):
        found -= llama_cpp.NORM_OFFSETS.get(architecture, 0.0)
    return found


def _save(state: dict[str, torch.Tensor], path: Path) -> None:
    try:
        save_file(state, path, _METADATA)
    except SafetensorError as error:  # which is what a full disk is told by
        raise OSError(str(error)) from error


def _damage(folder: Path) -> str | None:
    """What of the folder is not as it was written, or None."""
    try:
        written = read_json(folder / MANIFEST, SCHEMA, VERSION)["files"]
        if not isinstance(written, dict) or "model.safetensors" not in written:
            return "has a damaged manifest"
    except (InputError, KeyError):
        return "has no manifest that can be read"
    for name, digest in written.items():
        file = folder / name
        if not file.is_file() or file_digest(file) != digest:
            return f"is damaged ({name} is not as it was written)"
    return None


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _sweep(models: Path) -> None:
    """Remove what killed processes left half made: what nobody holds the lock of."""
    for temporary in models.glob(".*"):
        owner = temporary.with_name(temporary.name[1:].removesuffix(_PART))
        with contextlib.suppress(BlockingIOError), exclusive(_lock_of(owner), wait=False):
            shutil.rmtree(temporary, ignore_errors=True)
