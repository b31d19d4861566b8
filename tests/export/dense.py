"""Random dense models of every family, pruned by hand: what exports are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from stages.architecture import Architecture, LayerWidth, ModelShape
from stages.export import huggingface
from stages.families import FAMILIES

HIDDEN, LAYERS, GROUPS, HEADS, HEAD_DIM, CHANNELS, VOCABULARY = 36, 4, 2, 3, 8, 64, 97
MIXED = Architecture.from_json([[2, 3, 64], [1, 2, 33], [2, 1, 0], [0, 0, 5]])
HOLLOW = Architecture.from_json([[0, 0, 40], [2, 2, 64], [0, 0, 0], [1, 3, 7]])
FAMILY_OPTIONS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 5},
    "qwen2": {},
    "qwen3": {},
}


@dataclass(frozen=True)
class Dense:
    """A random dense model of one family."""

    model: Any
    shape: ModelShape

    @property
    def config(self) -> Any:
        return self.model.config


def make_dense(family: str, tied: bool = False, **options: Any) -> Dense:
    settings: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": GROUPS * HEADS,
        "num_key_value_heads": GROUPS,
        "head_dim": HEAD_DIM,
        "intermediate_size": CHANNELS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 64,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    config = AutoConfig.for_model(family, **settings | FAMILY_OPTIONS[family] | options)
    config.dtype = torch.float32
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name else 0.0
            parameter.copy_(centre + 0.3 * torch.randn_like(parameter))
    return Dense(model, FAMILIES[family].shape(config.to_dict()))


def kept_rows(shape: ModelShape, width: LayerWidth) -> tuple[list[int], list[int]]:
    """Rows of q (columns of o) and rows of k and v that a layer of that width keeps."""
    heads = [
        g * shape.heads_per_group + h for g in range(width.kv_groups) for h in range(width.heads_per_group)
    ]
    query = [row for head in heads for row in range(head * HEAD_DIM, (head + 1) * HEAD_DIM)]
    return query, list(range(width.kv_groups * HEAD_DIM))


def sliced(dense: Dense, architecture: Architecture) -> dict[str, torch.Tensor]:
    """The pruned state, cut by hand from the dense one."""
    state = dict(dense.model.state_dict())
    if dense.shape.tied_embeddings:
        del state["lm_head.weight"]
    for layer, width in enumerate(architecture.widths):
        query, key_value = kept_rows(dense.shape, width)
        keep = {"q_proj": query, "k_proj": key_value, "v_proj": key_value}
        channels = list(range(width.channels))
        keep |= {"gate_proj": channels, "up_proj": channels}
        columns = {"o_proj": query, "down_proj": channels}
        gone = [] if width.has_attention else ["self_attn.", "input_layernorm."]
        gone += [] if width.has_mlp else ["mlp.", "post_attention_layernorm."]
        prefix = f"model.layers.{layer}."
        for name in [n for n in state if n.startswith(prefix)]:
            if name.removeprefix(prefix).startswith(tuple(gone)):
                del state[name]
                continue
            module, kind = name.split(".")[-2:]
            if module in keep:
                state[name] = state[name][keep[module]]
            elif module in columns and kind == "weight":
                state[name] = state[name][:, columns[module]]
    return state


def masked(dense: Dense, architecture: Architecture) -> Any:
    """The dense model itself, made to ignore what the architecture removes."""
    with torch.no_grad():
        for layer, width in zip(dense.model.model.layers, architecture.widths, strict=True):
            query, _ = kept_rows(dense.shape, width)
            output, down = layer.self_attn.o_proj, layer.mlp.down_proj
            output.weight[:, [c for c in range(output.in_features) if c not in query]] = 0
            down.weight[:, width.channels :] = 0
            for projection, present in ((output, width.has_attention), (down, width.has_mlp)):
                if not present and projection.bias is not None:
                    projection.bias.zero_()
    return dense.model


def export(folder: Path, dense: Dense, architecture: Architecture, **changes: Any) -> Path:
    arguments: dict[str, Any] = {
        "state": sliced(dense, architecture),
        "base_config": dense.config,
        "tokenizer": None,
        "generation_config": None,
        "dtype": torch.float32,
    }
    huggingface.write_folder(folder, architecture=architecture, shape=dense.shape, **{**arguments, **changes})
    return folder


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options).eval()


def pruned(folder: Path, family: str = "llama", architecture: Architecture = HOLLOW, **options: Any) -> Any:
    return load(export(folder / "model", make_dense(family), architecture), **options)


def tokens(batch: int = 2, length: int = 11, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def logits(model: Any, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(ids, **options).logits
    return result


def greedy(model: Any, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    settings = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12, **options}
    mask = settings.pop("attention_mask", torch.ones_like(ids))
    result: torch.Tensor = model.generate(ids, attention_mask=mask, **settings)
    return result


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
