"""Tiny random models of every family, as folders in the hub's format, and what they are compared with.

Every weight is random, norms and biases too, so that a test that forgets one of them fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from stages.architecture import Architecture, LayerWidth, ModelShape
from stages.evaluate import checkpoint
from stages.evaluate.checkpoint import Checkpoint
from stages.evaluate.elastic import Batch, ElasticNetwork
from stages.evaluate.layers import UnitOrder
from stages.params import Model

HIDDEN, LAYERS, GROUPS, HEADS, HEAD_DIM, CHANNELS, VOCABULARY = 36, 4, 2, 3, 8, 64, 260
CPU = torch.device("cpu")

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}


class Variant(NamedTuple):
    """A family with options of its configuration."""

    family: str
    options: dict[str, Any]


VARIANTS = {
    "llama": Variant("llama", {}),
    "llama-tied": Variant("llama", {"tie_word_embeddings": True}),
    "llama-biased": Variant("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-mha": Variant(
        "llama", {"num_attention_heads": 6, "num_key_value_heads": 6, "attention_bias": True}
    ),
    "llama-llama3-rope": Variant("llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama-yarn-rope": Variant("llama", {"rope_parameters": YARN_ROPE}),
    "mistral": Variant("mistral", {}),
    "qwen2": Variant("qwen2", {}),
    "qwen2-tied-mha": Variant("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 6}),
    "qwen3": Variant("qwen3", {}),
    "qwen3-biased": Variant("qwen3", {"attention_bias": True}),
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and four special tokens."""
    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    vocabulary = {token: index for index, token in enumerate([*special, *sorted(ByteLevel.alphabet())])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def bos_tokenizer() -> PreTrainedTokenizerFast:
    """The byte tokenizer, which now puts a BOS before a text as Llama's does."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    return tokenizer


def random_model(family: str, seed: int = 0, **options: Any) -> Any:
    """A transformers model whose weights are all random, norms around one and the rest around zero."""
    settings: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": GROUPS * HEADS,
        "num_key_value_heads": GROUPS,
        "head_dim": HEAD_DIM,
        "intermediate_size": CHANNELS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-5,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = AutoConfig.for_model(family, **settings | options)
    config.dtype = torch.float32
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name else 0.0
            parameter.copy_(centre + 0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def write_model(folder: Path, family: str, seed: int = 0, **options: Any) -> Path:
    """Write a random model with its tokenizer to a folder in the hub's format."""
    random_model(family, seed, **options).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def source_of(folder: Path) -> Model:
    return Model(source=str(folder), revision=None, trust_remote_code=False)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Checkpoint:
    return checkpoint.load(source_of(folder), dtype)


def network_of(folder: Path, dtype: torch.dtype = torch.float32) -> ElasticNetwork:
    return ElasticNetwork(load(folder, dtype), CPU)


def reference(folder: Path) -> Any:
    """transformers' own model of the folder."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def random_tokens(
    rows: int = 2, length: int = 24, seed: int = 1, vocabulary: int = VOCABULARY
) -> torch.Tensor:
    return torch.randint(4, vocabulary, (rows, length), generator=torch.Generator().manual_seed(seed))


def causal(tokens: torch.Tensor) -> Batch:
    """The prediction of every token of each row but its first."""
    rows, length = tokens.shape
    at = torch.tensor([row * length + place for row in range(rows) for place in range(length - 1)])
    return Batch(tokens, torch.arange(length).repeat(rows, 1), None, at, tokens[:, 1:].flatten())


def elastic_logits(network: ElasticNetwork, architecture: Architecture, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        hidden, _ = network.hidden_states(architecture, causal(tokens))
        return network.logits(hidden)


def reference_logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(tokens).logits
    return logits


def random_architecture(shape: ModelShape, generator: torch.Generator) -> Architecture:
    def up_to(largest: int) -> int:
        return int(torch.randint(0, largest + 1, (1,), generator=generator))

    return Architecture(
        tuple(
            LayerWidth(up_to(shape.kv_groups), up_to(shape.heads_per_group), up_to(shape.channels))
            for _ in range(shape.layers)
        )
    )


def random_order(shape: ModelShape, seed: int = 5) -> UnitOrder:
    generator = torch.Generator().manual_seed(seed)

    def permutations(*leading: int, size: int) -> torch.Tensor:
        return torch.rand(*leading, size, generator=generator).argsort(-1)

    return UnitOrder(
        groups=permutations(shape.layers, size=shape.kv_groups),
        heads=permutations(shape.layers, shape.kv_groups, size=shape.heads_per_group),
        channels=permutations(shape.layers, size=shape.channels),
    )


def mask_removed(
    model: Any, shape: ModelShape, architecture: Architecture, order: UnitOrder | None = None
) -> None:
    """Make transformers' dense model ignore, in place, the units that the architecture removes.

    A removed query head's columns of o and a removed channel's column of down become zero, and so do
    the output biases of dropped sublayers. `order` says which units come first; by default as they are.
    """
    with torch.no_grad():
        for index, (layer, width) in enumerate(zip(model.model.layers, architecture.widths, strict=True)):
            kept_columns: list[int] = []
            for rank in range(width.kv_groups):
                group = rank if order is None else int(order.groups[index, rank])
                for place in range(width.heads_per_group):
                    head = place if order is None else int(order.heads[index, rank, place])
                    first = (group * shape.heads_per_group + head) * shape.head_dim
                    kept_columns += range(first, first + shape.head_dim)
            channels = range(shape.channels) if order is None else order.channels[index].tolist()
            _keep_columns(layer.self_attn.o_proj, kept_columns)
            _keep_columns(layer.mlp.down_proj, list(channels)[: width.channels])


def _keep_columns(projection: torch.nn.Linear, kept: list[int]) -> None:
    mask = torch.zeros(projection.in_features)
    mask[kept] = 1
    projection.weight.mul_(mask)
    if not kept and projection.bias is not None:
        projection.bias.zero_()


def run_by_hand(state: Mapping[str, torch.Tensor], config: Any, tokens: list[int]) -> torch.Tensor:
    """Logits of a (pruned) state dict by explicit loops in float64; widths are read off the tensors.

    Shares no code with the elastic network or transformers: rotary embeddings are complex numbers here,
    attention is one query at a time. Default rope only.
    """
    tensors = {name: tensor.double() for name, tensor in state.items()}
    d, half = config.head_dim, config.head_dim // 2
    theta = config.rope_parameters["rope_theta"]
    frequencies = torch.tensor([theta ** (-2 * i / d) for i in range(half)], dtype=torch.float64)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        scale: torch.Tensor = (x.square().mean() + config.rms_norm_eps).rsqrt()
        return x * scale * tensors[name]

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        bias = tensors.get(f"{name}.bias")
        return tensors[f"{name}.weight"] @ x + (0 if bias is None else bias)

    def turned(x: torch.Tensor, position: int, norm_name: str) -> torch.Tensor:
        x = norm(x, norm_name) if norm_name in tensors else x
        turn = torch.polar(torch.ones_like(frequencies), frequencies * position)
        product = torch.complex(x[:half], x[half:]) * turn
        return torch.cat((product.real, product.imag))

    states = [tensors["model.embed_tokens.weight"][token] for token in tokens]
    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}."
        if f"{at}self_attn.q_proj.weight" in tensors:
            inputs = [norm(x, f"{at}input_layernorm.weight") for x in states]
            queries, keys, values = (
                [linear(x, f"{at}self_attn.{part}_proj").view(-1, d) for x in inputs] for part in "qkv"
            )
            per_group = len(queries[0]) // len(keys[0])
            for position in range(len(states)):
                mixed = []
                for head, raw in enumerate(queries[position]):
                    group = head // per_group
                    query = turned(raw, position, f"{at}self_attn.q_norm.weight")
                    products = [
                        query @ turned(keys[past][group], past, f"{at}self_attn.k_norm.weight") / d**0.5
                        for past in range(position + 1)
                    ]
                    shares = torch.stack(products).softmax(0)
                    mixed.append(shares @ torch.stack([values[past][group] for past in range(position + 1)]))
                states[position] = states[position] + linear(torch.cat(mixed), f"{at}self_attn.o_proj")
        if f"{at}mlp.up_proj.weight" in tensors:
            for position, x in enumerate(states):
                x = norm(x, f"{at}post_attention_layernorm.weight")
                gate, up = linear(x, f"{at}mlp.gate_proj"), linear(x, f"{at}mlp.up_proj")
                product = gate / (1 + (-gate).exp()) * up
                states[position] = states[position] + linear(product, f"{at}mlp.down_proj")
    output = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    return torch.stack([output @ norm(x, "model.norm.weight") for x in states])
