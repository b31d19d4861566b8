"""What a GGUF file says of its model, under the names of Hugging Face: configuration and tensors, no weight.

Everything that the file sets is understood or refused here: a setting that is passed over makes another
network. llama.cpp's own reading of the keys is in its src/llama-model.cpp.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader
from gguf.gguf_reader import ReaderTensor
from gguf.quants import dequantize

from stages.families import FAMILIES, llama_cpp
from stages.files import InputError
from stages.sample.digests import Status, status_of

ROPE_FREQS = "rope_freqs.weight"
_ROPE = {f"rope.scaling.{key}" for key in ("type", "factor", "original_context_length", "finetuned")}
_ROPE |= {"rope.freq_base", "rope.dimension_count", "rope.scale_linear"}
_ROPE |= {f"rope.scaling.yarn_{key}" for key in ("beta_fast", "beta_slow")}
_SIZES = {"block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size"}
_ATTENTION = {"head_count", "head_count_kv", "key_length", "value_length", "layer_norm_rms_epsilon"}
_OWN = {"gemma3": {"attention.sliding_window", "attention.sliding_window_pattern", "rope.freq_base_swa"}}
_READ = _ROPE | _SIZES | {f"attention.{key}" for key in _ATTENTION}
_USUAL = {  # what changes nothing at these values, or says nothing of the network
    "attention.causal": True,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "tensor_data_layout": "Meta AI original pth",
}
_SPECIAL = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_MERGE = "or merge them with llama.cpp's `llama-gguf-split --merge FIRST_PART WHOLE.gguf`"
_LLAMA3_BAND = (1.0, 4.0)  # low_freq_factor and high_freq_factor of every Llama that was published


@dataclass(frozen=True)
class Header:
    """The settings and tensors of a GGUF file, or of all parts of a split one."""

    parts: tuple[Path, ...]
    fields: Mapping[str, Any]
    """Values by key; of arrays longer than a model has layers, the length alone."""
    tensors: Mapping[str, ReaderTensor]

    @property
    def path(self) -> Path:
        return self.parts[0]

    @property
    def architecture(self) -> str:
        return str(self.fields.get("general.architecture"))

    def __call__(self, key: str) -> Any:
        """A setting of the architecture, or None."""
        return self.fields.get(f"{self.architecture}.{key}")

    def refuse(self, words: str) -> InputError:
        return InputError(f"{self.path} {words}")


def read_header(path: Path) -> Header:
    """Read a GGUF file, and the other parts of a split one.

    Raises:
        InputError: a part is missing or cannot be read, or the parts do not make one file.
    """
    parts = _parts(path)
    return _read(parts, tuple(map(status_of, parts)))


@functools.lru_cache(maxsize=4)
def _read(parts: tuple[Path, ...], _: tuple[Status, ...]) -> Header:
    tensors: dict[str, ReaderTensor] = {}
    fields: dict[str, Any] = {}
    for number, part in enumerate(parts):
        found, reader = _open(part)
        place, count = found.get("split.no") or 0, found.get("split.count") or 1
        if (place, count) != (number, len(parts)):
            raise InputError(
                f"{part} says that it is part {place + 1} of {count}; by its name it is part {number + 1} of "
                f"{len(parts)}. Name the parts as llama.cpp does (NAME-00001-of-{count:05}.gguf, …) and give "
                f"the first, {_MERGE}"
            )
        if twice := sorted(t.name for t in reader.tensors if t.name in tensors):
            raise InputError(f"{part} holds {twice[0]}, which a part before holds too; fetch the parts again")
        fields = fields or found
        tensors |= {tensor.name: tensor for tensor in reader.tensors}
    total = fields.get("split.tensors.count")
    if len(parts) > 1 and total is not None and total != len(tensors):
        raise InputError(f"the parts of {parts[0]} hold {len(tensors)} of {total} tensors; fetch them again")
    return Header(parts, fields, tensors)


def stem(path: Path) -> str:
    """The name of a model's file without its ending, and without the number of a part."""
    found = _PART.fullmatch(path.name)
    return found["stem"] if found else path.stem


def _parts(path: Path) -> tuple[Path, ...]:
    """All files of a model, in order: the file itself unless its name is that of a part."""
    found = _PART.fullmatch(path.name)
    if found is None or int(found["count"]) < 2:
        return (path,)
    count = int(found["count"])
    parts = [path.with_name(f"{found['stem']}-{n:05}-of-{count:05}.gguf") for n in range(1, count + 1)]
    parts[int(found["number"]) - 1 if 1 <= int(found["number"]) <= count else 0] = path
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise InputError(
            f"{path} is one of {count} parts of a split file, and {len(missing)} are not beside it: "
            f"{', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}. Fetch them into {path.parent}, "
            f"{_MERGE}"
        )
    return tuple(parts)


class _Reader(GGUFReader):
    """gguf's reader, which takes what lies beyond the end for empty, and would count through it for ever."""

    def _get(self, offset: int, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
        if offset + np.dtype(dtype).itemsize * int(count) > len(self.data):
            raise ValueError(f"it ends after {len(self.data)} bytes, in the midst of something")
        return super()._get(offset, dtype, count, override_order)


def _open(path: Path) -> tuple[dict[str, Any], GGUFReader]:
    try:
        reader = _Reader(path)
        fields = {
            key: len(field.data) if len(field.data) > 1024 else field.contents()
            for key, field in reader.fields.items()
        }
    except Exception as error:  # whatever its bytes lead the reader to
        raise InputError(
            f"{path} is not a readable GGUF file, or was cut short ({error}); fetch it again"
        ) from error
    return fields, reader


def configuration(header: Header) -> dict[str, Any]:
    """The configuration under the names of Hugging Face's config.json.

    Raises:
        InputError: the file lacks a setting, or has one that Prunecast does not know or cannot rebuild.
    """
    architecture = header.architecture
    if architecture not in llama_cpp.READ:
        raise header.refuse(
            f"is of the architecture {architecture!r}; GGUF files of {', '.join(llama_cpp.READ)} are read. "
            "If its family is supported, give the model in Hugging Face's format"
        )
    _check_settings(header)
    heads, hidden = _size(header, "attention.head_count"), _size(header, "embedding_length")
    head_dim = _optional_size(header, "attention.key_length") or hidden // heads
    if (value := _optional_size(header, "attention.value_length") or head_dim) != head_dim:
        raise header.refuse(f"has keys of {head_dim} and values of {value} elements a head; expected equals")
    found = {
        "model_type": llama_cpp.READ[architecture],
        "num_hidden_layers": _size(header, "block_count"),
        "hidden_size": hidden,
        "intermediate_size": _size(header, "feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": _optional_size(header, "attention.head_count_kv") or heads,
        "head_dim": head_dim,
        "vocab_size": _rows(header),
        "max_position_embeddings": _size(header, "context_length"),
        "rms_norm_eps": _number(header, "attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(header, head_dim),
        "tie_word_embeddings": "output.weight" not in header.tensors,
    }
    found |= _gemma3(header, found) if architecture == "gemma3" else {}
    for key, name in (("attention_bias", "attn_q.bias"), ("mlp_bias", "ffn_down.bias")):
        if f"blk.0.{name}" in header.tensors and architecture != "qwen2":  # whose biases go without saying
            found[key] = True
    for theirs, ours in _SPECIAL.items():
        token = header.fields.get(f"tokenizer.ggml.{theirs}_token_id")
        found |= {} if token is None else {f"{ours}_token_id": int(token)}
    return found


def _gemma3(header: Header, usual: Mapping[str, Any]) -> dict[str, Any]:
    """What a Gemma 3 has besides the usual, as llama.cpp reads it."""
    head_dim, hidden, heads = usual["head_dim"], usual["hidden_size"], usual["num_attention_heads"]
    local = {"rope_type": "default", "rope_theta": _number(header, "rope.freq_base_swa", 10000.0)}
    return {
        "rope_parameters": {"full_attention": usual["rope_parameters"], "sliding_attention": local},
        "sliding_window": _size(header, "attention.sliding_window"),
        "sliding_window_pattern": _optional_size(header, "attention.sliding_window_pattern") or 6,
        "query_pre_attn_scalar": hidden // heads if usual["num_hidden_layers"] == 62 else head_dim,  # 27B
    }


def tensors(header: Header) -> dict[str, ReaderTensor]:
    """The tensors under their Hugging Face names; others than a model has keep theirs.

    What `configuration` is made of is left out.

    Raises:
        InputError: a tensor is of a type that cannot be dequantised.
    """
    for tensor in header.tensors.values():
        if not _dequantisable(tensor.tensor_type):
            raise header.refuse(
                f"holds {tensor.name} as {tensor.tensor_type.name}, which the package gguf cannot "
                "dequantise; give another quantisation, or the F16 or BF16 file that it was made from"
            )
    names = llama_cpp.tensor_names(
        FAMILIES[llama_cpp.READ[header.architecture]], _size(header, "block_count")
    )
    return {names.get(name, name): t for name, t in header.tensors.items() if name != ROPE_FREQS}


@functools.cache
def _dequantisable(kind: GGMLQuantizationType) -> bool:
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except (NotImplementedError, ValueError):
        return False
    return True


def check_tokens(header: Header) -> None:
    """Raise InputError unless the file has a tokenizer whose tokens all have rows of the embedding."""
    count = header.fields.get("tokenizer.ggml.tokens")
    count = len(count) if isinstance(count, list) else count
    if not count or "tokenizer.ggml.model" not in header.fields:
        raise header.refuse(
            "has no tokenizer (tokenizer.ggml.model and tokenizer.ggml.tokens); give a file that has one, or "
            "the model in Hugging Face's format"
        )
    if count > (rows := _rows(header)):
        raise header.refuse(
            f"has a tokenizer of {count} tokens and an embedding of {rows} rows; expected a row a token. The "
            "tokenizer is another model's, or was added to without the embedding: convert the model again"
        )


def _check_settings(header: Header) -> None:
    prefix = f"{header.architecture}."
    for key, value in header.fields.items():
        setting = key.removeprefix(prefix)
        read = _READ | _OWN.get(header.architecture, set())
        if key == setting or setting in read or value in (0, False, "", None):
            continue
        if _USUAL.get(setting) != value and not (
            setting.startswith("expert_") and not header("expert_count")
        ):
            raise header.refuse(
                f"sets {key} to {value!r}, which Prunecast does not rebuild; give the model in Hugging "
                "Face's format (config.json and *.safetensors)"
            )


def _size(header: Header, key: str) -> int:
    found = _optional_size(header, key)
    if found is None:
        raise header.refuse(f"lacks {header.architecture}.{key}; it is incomplete: fetch or convert it again")
    return found


def _optional_size(header: Header, key: str) -> int | None:
    found = header(key)
    values = set(found) if isinstance(found, list) else {found}
    if len(values) > 1:
        raise header.refuse(
            f"gives its layers sizes of their own ({header.architecture}.{key}), as pruned models have; "
            "pruning starts from a model whose layers are alike"
        )
    (value,) = values
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise header.refuse(f"has {header.architecture}.{key} {value!r}; expected a whole number from 1")
    return value


def _number(header: Header, key: str, usual: float | None = None) -> float:
    found = header(key)
    found = usual if found is None else found
    if not isinstance(found, float | int) or not math.isfinite(found) or found <= 0:
        raise header.refuse(f"has {header.architecture}.{key} {found!r}; expected a number above 0")
    return float(found)


def _rows(header: Header) -> int:
    """Rows of the embedding: a row a token, also where no key counts them."""
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise header.refuse("lacks the tensor token_embd.weight; it is incomplete: fetch or convert it again")
    rows, said = int(embedding.shape[-1]), _optional_size(header, "vocab_size")
    if said not in (None, rows):
        raise header.refuse(f"has a vocab_size of {said} and an embedding of {rows} rows; expected equals")
    return rows


def _rope(header: Header, head_dim: int) -> dict[str, Any]:
    """The rotary embedding in the words of transformers' ``rope_parameters``."""
    found: dict[str, Any] = {"rope_theta": _number(header, "rope.freq_base", 10000.0), "rope_type": "default"}
    turned = _optional_size(header, "rope.dimension_count") or head_dim
    if turned != head_dim:
        found["partial_rotary_factor"] = turned / head_dim
    factor = header("rope.scaling.factor") or header("rope.scale_linear") or 1.0
    kind = header("rope.scaling.type") or "linear"  # llama.cpp's own default
    if any(name.startswith("rope_factors_") for name in header.tensors):
        kind = "longrope"
    if kind == "longrope":
        raise header.refuse("has the rope type 'longrope', which is read out of folders alone")
    if kind != "none" and factor == 1:
        kind = "none"
    if kind == "none":
        return found | _llama3(header, found["rope_theta"])
    if ROPE_FREQS in header.tensors:
        raise header.refuse(f"has rope scaling of the type {kind} and {ROPE_FREQS} too; expected one of them")
    found |= {"rope_type": str(kind), "factor": float(factor)}
    if kind == "yarn":
        original = _optional_size(header, "rope.scaling.original_context_length")
        found["original_max_position_embeddings"] = original or _size(header, "context_length")
        for key in ("beta_fast", "beta_slow"):
            if value := header(f"rope.scaling.yarn_{key}"):
                found[key] = float(value)
    return found


def _llama3(header: Header, theta: float) -> dict[str, Any]:
    """The rope of Llama 3, told by the divisors of the frequencies: all of them, or it is refused.

    llama.cpp's converter computes them as transformers' ``_compute_llama3_parameters`` does and keeps nothing
    else. In the band between the two frequency factors they tell the context that they were scaled from.
    """
    tensor = header.tensors.get(ROPE_FREQS)
    if tensor is None:
        return {}
    divisors = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float64).ravel()
    if np.all(divisors == 1):
        return {}
    waves = 2 * np.pi * theta ** (np.arange(len(divisors)) / len(divisors))
    factor = round(float(divisors.max()), 4)
    low, high = _LLAMA3_BAND
    if factor > 1:
        smooth = (1 / divisors - 1 / factor) / (1 - 1 / factor)
        band = (smooth > 1e-3) & (smooth < 1 - 1e-3)
        contexts = waves[band] * (low + smooth[band] * (high - low))
        for context in {round(float(context)) for context in contexts}:
            blend = np.clip((context / waves - low) / (high - low), 0, 1)
            if np.allclose(1 / ((1 - blend) / factor + blend), divisors, rtol=1e-4, atol=0):
                return {
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": low,
                    "high_freq_factor": high,
                    "original_max_position_embeddings": context,
                }
    raise header.refuse(
        f"scales its rotary frequencies one by one ({ROPE_FREQS}), and not as Llama 3 does; such a rope "
        "cannot be rebuilt. Give the model in Hugging Face's format, whose config.json says how it was made"
    )
