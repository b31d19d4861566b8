"""Write a pruned model as a GGUF file that llama.cpp runs, in F16, Q8_0 or Q4_0.

llama.cpp's `deci` architecture reads head counts, key-value head counts and MLP widths layer by layer;
layers of equal width make an ordinary `llama` file. What was read in llama.cpp's source (src/models/deci.cpp)
and decides what is written here:

- A layer that keeps its attention and has no MLP loses its attention silently, and a last layer without MLP
  returns the wrong rows. So an MLP is padded with channels of zeros to a whole number of quantisation blocks,
  at least one: a dropped MLP becomes 32 channels that add nothing. A layer that lost both is left out.
- The head size is read only where layer 0 has heads. A first layer without attention gets one head of zeros.
- Rotary embeddings turn neighbouring elements, where transformers turns element i with i + d/2.

A family that normalises queries and keys makes an `openelm` file (src/models/openelm.cpp), which reads the
same layer by layer. Queries, keys and values are one matrix there, heads turn as in transformers, and every
layer has attention: a head of zeros where it is gone.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, RopeScalingType
from gguf.quants import quant_shape_to_byte_shape, quantize
from torch import Tensor

from stages.architecture import Architecture, LayerWidth, ModelShape
from stages.export.gguf.fields import Fields, UnsupportedError
from stages.families import FAMILIES, BlockRecipe, Family, llama_cpp
from stages.families.llama_cpp import BLOCK
from stages.families.recipe import Rotary
from stages.files import atomically

_TYPES = {
    "F16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "Q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "Q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}


@dataclass(frozen=True)
class PrunedModel:
    """What a GGUF file is made from.

    `state` has float32 tensors under the family's Hugging Face names, with the widths of `architecture`
    (`PrunedWeights`); `recipe` and `config`, transformers' configuration, are the dense model's.
    """

    name: str
    state: Mapping[str, Tensor]
    recipe: BlockRecipe
    config: Any
    architecture: Architecture
    shape: ModelShape
    tokenizer: Fields


def check_supported(model: PrunedModel) -> None:
    """Raise UnsupportedError, saying why, unless llama.cpp computes what the model does."""
    if reason := llama_cpp.refusal(model.shape, model.recipe):
        raise UnsupportedError(reason)
    if not model.architecture.kept_layers():
        raise UnsupportedError("every layer is gone, and llama.cpp loads no model without layers")


def write_file(path: Path, model: PrunedModel, file_type: str) -> None:
    """Write the model, its tokenizer and its chat template as one file, whole or not at all.

    Matrices are stored in `file_type` ("F16", "Q8_0" or "Q4_0"), norms and biases in float32. Rows that
    are no whole number of blocks are stored in F16. In a Q4_0 file the output matrix is Q8_0: rounding
    it costs most.

    Raises:
        UnsupportedError: llama.cpp cannot hold the model exactly, or a weight overflows float16.
    """
    check_supported(model)
    tensors = dict(_tensors(model))
    types = {name: _type_of(name, tensor, file_type, model.shape) for name, tensor in tensors.items()}
    blocks = [model.architecture.widths[layer] for layer in model.architecture.kept_layers()]
    written = _written(blocks, model.recipe.qk_norm)
    alike = "llama" if len(set(written)) == 1 else "deci"
    writer = GGUFWriter(None, "openelm" if model.recipe.qk_norm else alike)
    _describe(writer, model, written, file_type)
    for name, tensor in tensors.items():
        size = quant_shape_to_byte_shape(tuple(tensor.shape), types[name])
        writer.add_tensor_info(name, size, np.dtype(np.uint8), math.prod(size), types[name])
    with atomically(path) as partial, contextlib.closing(writer):
        writer.open_output_file(partial)
        writer.write_header_to_file(partial)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in tensors.items():
            writer.write_tensor_data(_quantised(name, tensor, types[name]).view(np.uint8))


def _rotary(recipe: BlockRecipe) -> Rotary:
    """The rotary embedding that all layers have: a recipe whose layers differ is refused."""
    return recipe.rotary[0] or {}


def _written(widths: list[LayerWidth], attention_in_all: bool = False) -> list[LayerWidth]:
    """The widths that the file has: what llama.cpp needs is added to those that the model has."""
    found = []
    for index, width in enumerate(widths):
        groups, heads = (width.kv_groups, width.heads_per_group) if width.has_attention else (0, 0)
        if (index == 0 or attention_in_all) and not groups:
            groups, heads = 1, 1
        found.append(LayerWidth(groups, heads, max(BLOCK, math.ceil(width.channels / BLOCK) * BLOCK)))
    return found


def _describe(writer: GGUFWriter, model: PrunedModel, widths: list[LayerWidth], file_type: str) -> None:
    """The header: everything that llama.cpp needs to know but the tensors."""
    shape = model.shape
    heads, groups = [w.kv_groups * w.heads_per_group for w in widths], [w.kv_groups for w in widths]
    channels = [w.channels for w in widths]
    uniform = writer.arch == "llama"
    writer.add_type("model")
    writer.add_name(model.name)
    writer.add_file_type(_TYPES[file_type][1])
    writer.add_quantization_version(2)
    writer.add_block_count(len(widths))
    writer.add_context_length(_context_length(model))
    writer.add_embedding_length(shape.hidden)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_head_count(heads[0] if uniform else heads)
    writer.add_head_count_kv(groups[0] if uniform else groups)
    writer.add_feed_forward_length(channels[0] if uniform else channels)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(model.recipe.norm_eps)
    _describe_rope(writer, _rotary(model.recipe), shape.head_dim)
    for name, field in model.tokenizer.items():
        writer.add_key_value(name, field.value, field.type, field.element)


def _context_length(model: PrunedModel) -> int:
    """Positions that the model was made for; beyond a sliding window, which `deci` has not, it is not run."""
    windows = [window for window in model.recipe.windows if window is not None]
    return min(int(model.config.max_position_embeddings), *windows, sys.maxsize)


def _describe_rope(writer: GGUFWriter, rope: Rotary, head_dim: int) -> None:
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif kind == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(rope["factor"]))
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))


def _tensors(model: PrunedModel) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under llama.cpp's name, in float32, shaped as the file says."""
    family, state, shape = FAMILIES[model.shape.family], model.state, model.shape
    yield "token_embd.weight", state[family.embedding]
    for index, layer in enumerate(model.architecture.kept_layers()):
        width, prefix = model.architecture.widths[layer], family.layer.format(layer=layer)
        if width.has_attention and shape.qk_norm:
            attention = _normed_attention(family, state, prefix)
        elif width.has_attention:
            attention = _attention(family, state, prefix, shape.head_dim)
        elif index == 0 or shape.qk_norm:
            attention = _silent_attention(shape)
        else:
            attention = {}
        mlp = _mlp(family, state, prefix, width, shape)
        for name, tensor in (attention | mlp).items():
            yield f"blk.{index}.{name}", tensor
    yield "output_norm.weight", state[family.final_norm]
    if not shape.tied_embeddings:
        yield "output.weight", state[family.head]
    if _rotary(model.recipe).get("rope_type") == "llama3":
        yield "rope_freqs.weight", _llama3_factors(model)


def _attention(family: Family, state: Mapping[str, Tensor], prefix: str, head_dim: int) -> dict[str, Tensor]:
    found = {"attn_norm.weight": state[f"{prefix}{family.attention_norm}.weight"]}
    for name, theirs in (("q", family.q), ("k", family.k), ("v", family.v), ("output", family.o)):
        for part in ("weight", "bias"):
            tensor = state.get(f"{prefix}{theirs}.{part}")
            if tensor is not None:
                turned = name in ("q", "k")
                found[f"attn_{name}.{part}"] = interleaved(tensor, head_dim) if turned else tensor
    return found


def interleaved(rows: Tensor, head_dim: int) -> Tensor:
    """Rows (heads * d, ...) of q or k with those of each head ordered 0, d/2, 1, d/2 + 1, …"""
    halves = rows.view(-1, 2, head_dim // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)


def _normed_attention(family: Family, state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Attention with norms of queries and keys, as `openelm` has it."""
    parts = [state[f"{prefix}{name}.weight"] for name in (family.q, family.k, family.v)]
    ours = {
        "norm": family.attention_norm,
        "q_norm": family.q_norm,
        "k_norm": family.k_norm,
        "output": family.o,
    }
    found = {f"attn_{name}.weight": state[f"{prefix}{theirs}.weight"] for name, theirs in ours.items()}
    return found | {"attn_qkv.weight": torch.cat(parts)}


def _silent_attention(shape: ModelShape) -> dict[str, Tensor]:
    """One head of zeros: it adds nothing."""
    row = torch.zeros(shape.head_dim, shape.hidden)
    if shape.qk_norm:
        norms = {f"attn_{name}_norm.weight": torch.ones(shape.head_dim) for name in ("q", "k")}
        around = {"attn_norm.weight": torch.ones(shape.hidden), "attn_output.weight": row.T}
        return around | norms | {"attn_qkv.weight": torch.cat((row, row, row))}
    found = {f"attn_{name}.weight": row for name in ("q", "k", "v")}
    return {"attn_norm.weight": torch.ones(shape.hidden), **found, "attn_output.weight": row.T}


def _mlp(
    family: Family, state: Mapping[str, Tensor], prefix: str, width: LayerWidth, shape: ModelShape
) -> dict[str, Tensor]:
    """The MLP with channels of zeros up to the width that is written, all of them if it was dropped."""
    (padded,) = (w.channels for w in _written([width]))
    if not width.has_mlp:
        rows = torch.zeros(padded, shape.hidden)
        return {
            "ffn_norm.weight": torch.ones(shape.hidden),
            "ffn_gate.weight": rows, "ffn_up.weight": rows, "ffn_down.weight": rows.T,
        }  # fmt: skip
    found = {"ffn_norm.weight": state[f"{prefix}{family.mlp_norm}.weight"]}
    missing = padded - width.channels
    for name, theirs in (("gate", family.gate), ("up", family.up), ("down", family.down)):
        for part in ("weight", "bias"):
            tensor = state.get(f"{prefix}{theirs}.{part}")
            if tensor is None:
                continue
            if missing and name == "down" and part == "weight":
                tensor = torch.cat((tensor, tensor.new_zeros(tensor.shape[0], missing)), dim=1)
            elif missing and name != "down":
                tensor = torch.cat((tensor, tensor.new_zeros(missing, *tensor.shape[1:])))
            found[f"ffn_{name}.{part}"] = tensor
    return found


def _llama3_factors(model: PrunedModel) -> Tensor:
    """The divisors of llama.cpp for each rotary frequency (d/2,), from transformers' own frequencies."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    scaled = LlamaRotaryEmbedding(model.config).inv_freq.double()
    exponents = torch.arange(len(scaled), dtype=torch.float64) / len(scaled)
    return (float(_rotary(model.recipe)["rope_theta"]) ** -exponents / scaled).float()


def _type_of(name: str, tensor: Tensor, file_type: str, shape: ModelShape) -> GGMLQuantizationType:
    if tensor.dim() < 2:
        return GGMLQuantizationType.F32
    if file_type == "F16" or tensor.shape[1] % BLOCK:
        return GGMLQuantizationType.F16
    output = "token_embd.weight" if shape.tied_embeddings else "output.weight"
    return GGMLQuantizationType.Q8_0 if name == output else _TYPES[file_type][0]


def _quantised(name: str, tensor: Tensor, kind: GGMLQuantizationType) -> np.ndarray[Any, Any]:
    values = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    if kind != GGMLQuantizationType.F32 and np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise UnsupportedError(f"{name} holds {np.abs(values).max():.4g}, which float16 cannot hold")
    return np.asarray(quantize(values, kind))
