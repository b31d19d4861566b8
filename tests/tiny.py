"""Tiny random models of every family, as folders in the hub's format, and what they are compared with.

Every weight is random, norms and biases too, so that a test that forgets one of them fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from stages.architecture import Architecture, LayerWidth, ModelShape, Site
from stages.config.params import Evaluate, ModelSection
from stages.evaluate.calibrate.least_squares import LeastSquares
from stages.evaluate.calibrate.memory import MemoryPlan, Texts, memory_plan
from stages.evaluate.calibrate.statistics import SiteStatistics
from stages.evaluate.calibrate.whitening import Room
from stages.evaluate.network import checkpoint
from stages.evaluate.network.batch import Batch
from stages.evaluate.network.checkpoint import Checkpoint
from stages.evaluate.network.decoder import Decoder
from stages.evaluate.network.elastic import DenseNetwork, ElasticNetwork
from stages.evaluate.network.repair import NOTHING_REPAIRED, Repair
from stages.evaluate.results.scores import UnitOrder
from stages.export.results.staging import replacing
from stages.export.weights.huggingface import write_folder
from stages.families import describe, register

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


GRANITE: dict[str, Any] = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.6,
    "attention_multiplier": 0.2,
    "logits_scaling": 1.7,
}
GEMMA3: dict[str, Any] = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 6,
    "query_pre_attn_scalar": 10,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    },
}
OLMO3: dict[str, Any] = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 6,
    "rope_parameters": {
        "full_attention": YARN_ROPE,
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    },
}
LONGROPE: dict[str, Any] = {
    "head_dim": 6,
    "original_max_position_embeddings": 16,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 1000.0,
        "partial_rotary_factor": 0.7,
        "short_factor": [1.0, 1.5],
        "long_factor": [1.2, 4.0],
    },
}
"""As Phi-4-mini has it: part of each head is turned; in texts of more than 16 tokens by other angles."""
LLAMA_LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 1000.0,
    "factor": 2.0,
    "original_max_position_embeddings": 100,
    "short_factor": [1.0, 1.5, 2.0, 4.0],
    "long_factor": [1.0] * 4,
}
VARIANTS = {
    "llama": Variant("llama", {}),
    "llama-tied": Variant("llama", {"tie_word_embeddings": True}),
    "llama-biased": Variant("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-mha": Variant(
        "llama", {"num_attention_heads": 6, "num_key_value_heads": 6, "attention_bias": True}
    ),
    "llama-llama3-rope": Variant("llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama-yarn-rope": Variant("llama", {"rope_parameters": YARN_ROPE}),
    "llama-gelu": Variant("llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "mistral": Variant("mistral", {}),
    "qwen2": Variant("qwen2", {}),
    "qwen2-tied-mha": Variant("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 6}),
    "qwen3": Variant("qwen3", {}),
    "qwen3-biased": Variant("qwen3", {"attention_bias": True}),
    "mistral-window": Variant("mistral", {"sliding_window": 5}),
    "qwen2-windows": Variant(
        "qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2}
    ),
    "granite": Variant("granite", GRANITE),
    "granite-biased-tied": Variant(
        "granite", GRANITE | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}
    ),
    "smollm3": Variant("smollm3", {"no_rope_layers": [1, 0, 0, 1]}),
    "phi3": Variant("phi3", {"sliding_window": 9}),
    "phi3-longrope": Variant("phi3", LONGROPE),
    "phi3-part": Variant("phi3", {"partial_rotary_factor": 0.5}),
    "llama-longrope": Variant("llama", {"rope_parameters": LLAMA_LONGROPE}),
    "gemma3": Variant("gemma3_text", GEMMA3),
    "gemma3-biased-untied": Variant(
        "gemma3_text", GEMMA3 | {"attention_bias": True, "tie_word_embeddings": False}
    ),
    "olmo2": Variant("olmo2", {}),
    "olmo3-tied": Variant("olmo3", OLMO3 | {"tie_word_embeddings": True, "attention_bias": True}),
}
"""Every family, and every piece of a recipe; attention windows are shorter than the texts of most tests."""
TOYS = {"seed_oss": Variant("seed_oss", {"attention_bias": True, "attention_out_bias": False})}
"""Of the toy family of tests/recipes, which the fixture `toy_families` enters."""
EXPORTED = {
    "llama": VARIANTS["llama-biased"],
    "llama-mha": VARIANTS["llama-mha"],
    "mistral": Variant("mistral", {"sliding_window": 5}),
    "qwen2": VARIANTS["qwen2"],
    "qwen3": VARIANTS["qwen3"],
    "granite": Variant(
        "granite", GRANITE | {"embedding_multiplier": 0.5, "attention_bias": True, "mlp_bias": True}
    ),
    "smollm3": VARIANTS["smollm3"],
    "phi3": VARIANTS["phi3"],
    "phi4": Variant("phi3", LONGROPE | {"original_max_position_embeddings": 64}),
    "gemma3": VARIANTS["gemma3-biased-untied"],
    "olmo2": VARIANTS["olmo2"],
    "olmo3": Variant("olmo3", OLMO3),
}
"""Variants whose exports are tested in every way."""
MIXED = Architecture.from_json([[2, 3, 64], [1, 2, 33], [2, 1, 0], [0, 0, 5]])
HOLLOW = Architecture.from_json([[0, 0, 40], [2, 2, 64], [0, 0, 0], [1, 3, 7]])
PRUNED_BEFORE = {
    "llama-mixed": Variant("llama", {"attention_bias": True, "mlp_bias": True, "pruned": MIXED.to_json()}),
    "llama-hollow": Variant("llama", {"pruned": HOLLOW.to_json()}),
    "qwen3-hollow": Variant("qwen3", {"pruned": HOLLOW.to_json()}),
    "phi3-mixed": Variant("phi3", {"sliding_window": 9, "pruned": MIXED.to_json()}),
    "gemma3-mixed": Variant("gemma3_text", GEMMA3 | {"pruned": MIXED.to_json()}),
    "olmo3-hollow": Variant("olmo3", OLMO3 | {"attention_bias": True, "pruned": HOLLOW.to_json()}),
}
"""Exports of these families, as sources of their own."""


CHATML = (
    "{% for message in messages %}<bos>{{ message['role'] }}\n{{ message['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant\n{% endif %}"
)
"""A template of chats, in the words of the byte tokenizer."""


def byte_tokenizer(*merges: tuple[str, str]) -> PreTrainedTokenizerFast:
    """One token a byte, one for every merge, and four special tokens."""
    tokens = ["<pad>", "<bos>", "<eos>", "<unk>", *sorted(ByteLevel.alphabet()), *map("".join, merges)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=list(merges)))
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
            centre = 1.0 if "norm" in name and family != "gemma3_text" else 0.0  # which adds one itself
            parameter.copy_(centre + 0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def write_model(folder: Path, family: str, seed: int = 0, **options: Any) -> Path:
    """Write a random model with its tokenizer to a folder in the hub's format; an export, if `pruned`."""
    if widths := options.pop("pruned", None):
        model = random_model(family, seed, **options)
        architecture = fitted(Architecture.from_json(widths), shape_of(model))
        return export(folder / "pruned", model, architecture, tokenizer=byte_tokenizer())
    random_model(family, seed, **options).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def teach_chats(folder: Path) -> Path:
    """Give the tokenizer in a folder a template of chats."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    return folder


def source_of(folder: Path) -> ModelSection:
    return ModelSection(source=str(folder), revision=None, trust_remote_code=False)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Checkpoint:
    return checkpoint.load(source_of(folder), dtype)


def repair_of(
    network: ElasticNetwork, moments: Mapping[Site, SiteStatistics], damping: float
) -> LeastSquares:
    """The repair of a network by the moments of its sites' activations."""
    return LeastSquares(network, moments.items, damping, Room(2**30, 0, Path("nowhere")))


def roomy(shape: ModelShape, section: Evaluate) -> MemoryPlan:
    """A memory that holds whatever a tiny model needs."""
    return memory_plan(shape, section, Texts(64, 64, 64, 64, 64), "cpu", 4, 2**32, 0)


def network_of(folder: Path, dtype: torch.dtype = torch.float32) -> DenseNetwork:
    return DenseNetwork(load(folder, dtype), CPU)


def elastic_of(
    folder: Path, order: UnitOrder | None = None, dtype: torch.dtype = torch.float32
) -> ElasticNetwork:
    """The elastic network of a folder, its units in `order`; by default as they are stored."""
    dense = network_of(folder, dtype)
    return dense.sorted(order or stored_order(dense.shape))


def stored_order(shape: ModelShape) -> UnitOrder:
    """The checkpoint's own order of units."""

    def counted(*sizes: int) -> np.ndarray:
        return np.broadcast_to(np.arange(sizes[-1]), sizes).copy()

    return UnitOrder(
        counted(shape.layers, shape.kv_groups),
        counted(shape.layers, shape.kv_groups, shape.heads_per_group),
        counted(shape.layers, shape.channels),
    )


def reference(folder: Path) -> Any:
    """transformers' own model of the folder; of an export, Prunecast's."""
    register(folder)
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


def elastic_logits(
    network: Decoder,
    architecture: Architecture,
    tokens: torch.Tensor,
    repair: Repair = NOTHING_REPAIRED,
) -> torch.Tensor:
    with torch.inference_mode():
        hidden, _ = network.hidden_states(architecture, causal(tokens), repair=repair)
        return network.logits(hidden)


def reference_logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(tokens).logits
    return logits


def random_architecture(shape: ModelShape, generator: torch.Generator) -> Architecture:
    def up_to(largest: int) -> int:
        return int(torch.randint(0, largest + 1, (1,), generator=generator))

    return Architecture(tuple(LayerWidth(*map(up_to, width)) for width in shape.widths))


def random_order(shape: ModelShape, seed: int = 5) -> UnitOrder:
    generator = torch.Generator().manual_seed(seed)

    def permutations(*leading: int, size: int) -> np.ndarray:
        return torch.rand(*leading, size, generator=generator).argsort(-1).numpy()

    def those_there_first(order: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        gone = order >= np.reshape(counts, (-1, *(1,) * (order.ndim - 1)))
        return np.take_along_axis(order, np.argsort(gone, axis=-1, kind="stable"), axis=-1)

    groups, heads, channels = zip(*shape.widths, strict=True)
    return UnitOrder(
        groups=those_there_first(permutations(shape.layers, size=shape.kv_groups), groups),
        heads=those_there_first(
            permutations(shape.layers, shape.kv_groups, size=shape.heads_per_group), heads
        ),
        channels=those_there_first(permutations(shape.layers, size=shape.channels), channels),
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
            if shape.qk_norm_whole and kept_columns:
                keys = sorted({column // (shape.heads_per_group * shape.head_dim) for column in kept_columns})
                rows = [key * shape.head_dim + place for key in keys for place in range(shape.head_dim)]
                layer.self_attn.q_norm = _NormOfKept(layer.self_attn.q_norm, kept_columns)
                layer.self_attn.k_norm = _NormOfKept(layer.self_attn.k_norm, rows)
            _keep_columns(layer.mlp.down_proj, list(channels)[: width.channels])


class _NormOfKept(torch.nn.Module):
    """An RMS norm over all heads that counts those alone which are kept."""

    def __init__(self, norm: Any, kept: list[int]) -> None:
        super().__init__()
        self.norm, self.kept = norm, kept

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x[..., self.kept].float().square().mean(-1, keepdim=True)
        scaled: torch.Tensor = x * (mean + self.norm.variance_epsilon).rsqrt() * self.norm.weight
        return scaled


def _keep_columns(projection: torch.nn.Linear, kept: list[int]) -> None:
    mask = torch.zeros(projection.in_features)
    mask[kept] = 1
    projection.weight.mul_(mask)
    if not kept and projection.bias is not None:
        projection.bias.zero_()


def shape_of(model: Any) -> ModelShape:
    return describe(model.config.to_dict(), "the tiny model").shape


def fitted(architecture: Architecture, shape: ModelShape) -> Architecture:
    """An architecture of the tiny GQA model with as many heads, each in a group of its own, for MHA."""
    if shape.heads_per_group > 1:
        return architecture
    return Architecture(tuple(LayerWidth(g * h, min(g * h, 1), c) for g, h, c in architecture.widths))


def masked(model: Any, architecture: Architecture) -> Any:
    """The dense model itself, which ignores from now on what the architecture removes."""
    mask_removed(model, shape_of(model), architecture)
    return model


def sliced(model: Any, architecture: Architecture) -> dict[str, torch.Tensor]:
    """The pruned state, cut by hand from the dense model's."""
    shape, state = shape_of(model), dict(model.state_dict())
    if shape.tied_embeddings:
        del state["lm_head.weight"]
    for layer, width in enumerate(architecture.widths):
        first = [g * shape.heads_per_group for g in range(width.kv_groups)]
        heads = [head + h for head in first for h in range(width.heads_per_group)]
        query = [head * shape.head_dim + place for head in heads for place in range(shape.head_dim)]
        key_value, channels = list(range(width.kv_groups * shape.head_dim)), list(range(width.channels))
        kept = {"q_proj": query, "o_proj": query, "k_proj": key_value, "v_proj": key_value}
        kept |= {"gate_proj": channels, "up_proj": channels, "down_proj": channels}
        keys = shape.kv_groups * shape.head_dim
        queries, both = keys * shape.heads_per_group, [[p + q for p in key_value] for q in (0, keys)]
        kept["qkv_proj"] = query + [queries + place for part in both for place in part]
        if shape.qk_norm_whole:
            kept |= {"q_norm": query, "k_norm": key_value}
        kept["gate_up_proj"] = channels + [shape.channels + place for place in channels]
        names = describe(model.config.to_dict(), "the tiny model").family.sublayers
        gone = () if width.has_attention else tuple(f"{name}." for name in names["attention"])
        gone += () if width.has_mlp else tuple(f"{name}." for name in names["mlp"])
        prefix = f"model.layers.{layer}."
        for name in [n for n in state if n.startswith(prefix)]:
            module, kind = name.split(".")[-2:]
            if name.removeprefix(prefix).startswith(gone):
                del state[name]
            elif module in ("o_proj", "down_proj"):
                state[name] = state[name][:, kept[module]] if kind == "weight" else state[name]
            elif module in kept:
                state[name] = state[name][kept[module]]
    return state


def export(folder: Path, model: Any, architecture: Architecture, **changes: Any) -> Path:
    """Write the pruned model where a stage would, and as it would."""
    arguments: dict[str, Any] = {
        "state": sliced(model, architecture),
        "base_config": model.config,
        "tokenizer": None,
        "generation_config": None,
        "dtype": torch.float32,
    }
    with replacing(folder.parent) as new:
        write_folder(
            new / folder.name, architecture=architecture, shape=shape_of(model), **{**arguments, **changes}
        )
    return folder


def exported(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options).eval()


def greedy(model: Any, tokens: torch.Tensor, **options: Any) -> torch.Tensor:
    """The most likely continuation by 12 tokens, after the prompt."""
    settings = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12, **options}
    mask = settings.pop("attention_mask", torch.ones_like(tokens))
    result: torch.Tensor = model.generate(tokens, attention_mask=mask, **settings)
    return result[:, tokens.shape[1] :]


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=3e-5)
