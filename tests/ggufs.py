"""GGUF files of tiny models, as llama.cpp's converter lays them out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests import tiny

VOCABULARY = tiny.VOCABULARY + 1
"""One token more than bytes: a format without merges is refused."""
GLOBAL_ROPE = {"rope_type": "default", "rope_theta": 5000.0}
ARCHITECTURES = {
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}


def model_of(family: str = "llama", **options: Any) -> Any:
    own: dict[str, Any] = {}
    if family == "gemma3_text":  # what llama.cpp takes for granted, and 7 layers, the sixth of them full
        own = {"query_pre_attn_scalar": tiny.HEAD_DIM, "sliding_window": 6, "num_hidden_layers": 7}
        own |= {"rope_parameters": tiny.GEMMA3["rope_parameters"] | {"full_attention": GLOBAL_ROPE}}
    return tiny.random_model(family, vocab_size=VOCABULARY, **own | options)


def tensors_of(model: Any) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors under llama.cpp's names, rows of q and k as it turns them."""
    config, family = model.config, model.config.model_type
    names = gguf.get_tensor_name_map(ARCHITECTURES[family], config.num_hidden_layers)
    found = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        rows = tensor.numpy()
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name and family == "llama":  # it turns neighbouring rows, not halves
                halves = rows.reshape(heads, 2, config.head_dim // 2, *rows.shape[1:])
                rows = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))
        if family == "gemma3_text" and "norm" in name:
            rows = 1 + rows
        found[str(names.get_name(name, try_suffixes=(".weight", ".bias")))] = rows
    return found


def settings_of(model: Any) -> dict[str, Any]:
    """The settings of the architecture by their keys."""
    config = model.config
    rotary, own = config.rope_parameters, {}
    if config.model_type == "gemma3_text":
        local, rotary = rotary["sliding_attention"], rotary["full_attention"]
        own = {"attention.sliding_window": config.sliding_window, "rope.freq_base_swa": local["rope_theta"]}
    return {
        **own,
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": rotary["rope_theta"],
        "vocab_size": config.vocab_size,
    }


def write(
    path: Path,
    model: Any,
    settings: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray[Any, Any]] | None = None,
    finish: Callable[[gguf.GGUFWriter], None] = lambda _: None,
    tokenizer: bool = True,
) -> Path:
    """Write a float32 file of the model; a setting of None is left out, and `finish` adds to the header."""
    prefix = gguf.MODEL_ARCH_NAMES[ARCHITECTURES[model.config.model_type]]
    writer = gguf.GGUFWriter(path, prefix)
    for key, value in {**settings_of(model), **(settings or {})}.items():
        _add(writer, f"{prefix}.{key}", value)
    if tokenizer:
        _add_tokenizer(writer)
    finish(writer)
    for name, rows in (tensors_of(model) if tensors is None else tensors).items():
        writer.add_tensor(name, rows)
    _close(writer)
    return path


def write_parts(folder: Path, model: Any, first: int) -> list[Path]:
    """The same in two files, `first` tensors in the first."""
    every = list(tensors_of(model).items())
    paths = [folder / f"tiny-0000{number}-of-00002.gguf" for number in (1, 2)]
    for number, (path, some) in enumerate(zip(paths, (every[:first], every[first:]), strict=True)):

        def finish(writer: gguf.GGUFWriter, number: int = number) -> None:
            writer.add_uint16("split.no", number)
            writer.add_uint16("split.count", 2)
            writer.add_int32("split.tensors.count", len(every))

        if number == 0:
            write(path, model, tensors=dict(some), finish=finish)
        else:
            writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[model.config.model_type]])
            finish(writer)
            for name, rows in some:
                writer.add_tensor(name, rows)
            _close(writer)
    return paths


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds: dict[type, Any] = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    kinds |= {str: writer.add_string, list: writer.add_array}
    if value is not None:
        kinds[type(value)](key, value)


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    vocabulary = tiny.byte_tokenizer().get_vocab() | {"ab": tiny.VOCABULARY}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(sorted(vocabulary, key=lambda token: vocabulary[token]))
    writer.add_token_types([3] * 4 + [1] * 257)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)


def _close(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
