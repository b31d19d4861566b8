"""A decoder-only model whose layers differ in width. Tested with transformers 5.23.

Prunecast copies this file into every folder that it exports, so that the folder loads anywhere::

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

It needs torch and transformers, nothing of Prunecast. Where Prunecast is installed, `register()`
lets the same folder load without remote code.

The widths follow transformers' own schema. ``config.per_layer_config`` names the layers that
differ from the dense model and how::

    {"3": {"num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 1024},
     "4": {"skip": ["attention"]},
     "5": {"skip": ["attention", "mlp"]}}

transformers 5.23 reads, checks and saves that schema but does not build it: its Llama refuses
widths and silently ignores ``skip``. So each model here builds its family's own decoder layers,
each with its own layer's configuration, and puts something that adds nothing in place of what a
layer skips: a skipped sublayer has no parameters, its norm included.
"""

# mypy: disable-error-code="no-untyped-call"
# (transformers leaves the __init_subclass__ of its models untyped)

import copy
from collections.abc import Iterator
from typing import Any

import torch
from huggingface_hub.dataclasses import strict  # transformers requires it of configurations
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
    MistralModel,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

SUBLAYERS = frozenset({"attention", "mlp"})


class _Widths:
    """What the configurations share: the checks of the widths, and what follows from them."""

    def __post_init__(self, **kwargs: Any) -> None:
        # The head size must come from the dense model, never from one layer's number of heads.
        head_dim = kwargs.pop("head_dim", None) or getattr(self, "head_dim", None)
        self.head_dim = head_dim or self.hidden_size // self.num_attention_heads  # type: ignore[attr-defined]
        super().__post_init__(**kwargs)  # type: ignore[misc]

    def validate_architecture(self) -> None:
        """Part of `@strict`, which wraps the error in its own: every layer's widths make sense.

        Raises:
            ValueError: a layer skips something unknown, has a width below 1, has query heads that
                its key-value heads do not divide, or no key-value cache can serve the model.
        """
        for layer in range(self.num_hidden_layers):  # type: ignore[attr-defined]
            width, skip = layer_config(self, layer), skipped(self, layer)
            if not skip <= SUBLAYERS:
                raise ValueError(f"layer {layer} skips {sorted(skip)}; expected some of {sorted(SUBLAYERS)}")
            heads, groups = width.num_attention_heads, width.num_key_value_heads
            if "attention" not in skip and (groups < 1 or heads < 1 or heads % groups):
                raise ValueError(
                    f"layer {layer} has {heads} query heads and {groups} key-value heads; expected at "
                    'least one of each and a whole number of query heads each, or "attention" in `skip`'
                )
            if "mlp" not in skip and width.intermediate_size < 1:
                raise ValueError(
                    f"layer {layer} has an MLP of {width.intermediate_size} channels; "
                    'expected at least 1, or "mlp" in `skip`'
                )
        cache_slots(self)


def layer_config(config: Any, layer: int) -> Any:
    """The configuration of one layer: `config` with that layer's widths."""
    return config.per_layer_config[layer]


def skipped(config: Any, layer: int) -> frozenset[str]:
    """Which sublayers that layer has not: some of "attention" and "mlp"."""
    return frozenset(getattr(layer_config(config, layer), "skip", ()))


def cache_slots(config: Any) -> list[int | None]:
    """For each layer, the entry of the key-value cache that it fills; None where attention is gone.

    transformers takes the length of the past from entry 0, so entry 0 must not stay empty when
    layer 0 has no attention: layers move up. An entry's kind (full or sliding) comes from
    ``config.layer_types``, so a layer moves among the entries of its own kind only.

    Raises:
        ValueError: every layer of layer 0's kind lost its attention, while layers of another kind
            kept theirs: entry 0 would stay empty.
    """
    layers = config.num_hidden_layers
    kinds = getattr(config, "layer_types", None) or ["attention"] * layers
    free = {kind: iter([slot for slot in range(layers) if kinds[slot] == kind]) for kind in set(kinds)}
    slots = [None if "attention" in skipped(config, i) else next(free[kinds[i]]) for i in range(layers)]
    if any(slot is not None for slot in slots) and 0 not in slots:
        raise ValueError(
            f"every layer of the kind {kinds[0]!r} skips its attention while others keep theirs; "
            f"transformers' key-value cache needs at least one layer of the first layer's kind"
        )
    return slots


class _NoAttn(nn.Module):  # spelt out, transformers would take it for an attention and refuse to switch ours
    """In place of a skipped attention: adds nothing to the residual stream."""

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        return hidden_states.new_zeros(()), None


class _NoMLP(nn.Module):
    """In place of a skipped MLP: adds nothing to the residual stream."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states.new_zeros(())


class _PrunedModel:
    """Mixed into a family's model: builds the family's layers, each with its own widths."""

    layer_class: Any
    layers: Any

    def __init__(self, config: Any) -> None:
        skeleton = copy.copy(config)  # everything but the layers
        skeleton.per_layer_config = None
        skeleton.num_hidden_layers = 0
        super().__init__(skeleton)  # type: ignore[call-arg]
        config._attn_implementation = skeleton._attn_implementation  # chosen by the line above
        self.config = config
        self.layers.extend(self._build_layers(config))
        self.post_init()  # type: ignore[attr-defined]

    def _build_layers(self, config: Any) -> Iterator[nn.Module]:
        for index, slot in enumerate(cache_slots(config)):
            skip = skipped(config, index)
            layer = self.layer_class(layer_config(config, index), index)
            if "attention" in skip:
                layer.self_attn, layer.input_layernorm = _NoAttn(), nn.Identity()
            else:
                layer.self_attn.layer_idx = slot
            if "mlp" in skip:
                layer.mlp, layer.post_attention_layernorm = _NoMLP(), nn.Identity()
            for module in layer.modules():
                if hasattr(module, "config"):  # one for all, so that `set_attn_implementation` reaches it
                    module.config = config
            yield layer


class _PrunedForCausalLM:
    """Mixed into a family's language model: the same head on the pruned model."""

    model_class: Any
    config: Any

    def __init__(self, config: Any) -> None:
        # Past the family's own __init__, which would build its dense model.
        PreTrainedModel.__init__(self, config)  # type: ignore[arg-type]
        self.model = self.model_class(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[attr-defined]

    def _get_static_cache_init_shape(self) -> Any:
        """None where layers moved up in the cache: its entries are then shaped at their first use."""
        if any(slot != layer for layer, slot in enumerate(cache_slots(self.config))):
            return None
        return super()._get_static_cache_init_shape()  # type: ignore[misc]


@strict
class PrunecastLlamaConfig(_Widths, LlamaConfig):
    model_type = "prunecast_llama"
    base_model_type: str = "llama"


class PrunecastLlamaModel(_PrunedModel, LlamaModel):
    config_class = PrunecastLlamaConfig
    layer_class = LlamaDecoderLayer


class PrunecastLlamaForCausalLM(_PrunedForCausalLM, LlamaForCausalLM):
    config_class = PrunecastLlamaConfig
    model_class = PrunecastLlamaModel


@strict
class PrunecastMistralConfig(_Widths, MistralConfig):
    model_type = "prunecast_mistral"
    base_model_type: str = "mistral"


class PrunecastMistralModel(_PrunedModel, MistralModel):
    config_class = PrunecastMistralConfig
    layer_class = MistralDecoderLayer


class PrunecastMistralForCausalLM(_PrunedForCausalLM, MistralForCausalLM):
    config_class = PrunecastMistralConfig
    model_class = PrunecastMistralModel


@strict
class PrunecastQwen2Config(_Widths, Qwen2Config):
    model_type = "prunecast_qwen2"
    base_model_type: str = "qwen2"


class PrunecastQwen2Model(_PrunedModel, Qwen2Model):
    config_class = PrunecastQwen2Config
    layer_class = Qwen2DecoderLayer


class PrunecastQwen2ForCausalLM(_PrunedForCausalLM, Qwen2ForCausalLM):
    config_class = PrunecastQwen2Config
    model_class = PrunecastQwen2Model


@strict
class PrunecastQwen3Config(_Widths, Qwen3Config):
    model_type = "prunecast_qwen3"
    base_model_type: str = "qwen3"


class PrunecastQwen3Model(_PrunedModel, Qwen3Model):
    config_class = PrunecastQwen3Config
    layer_class = Qwen3DecoderLayer


class PrunecastQwen3ForCausalLM(_PrunedForCausalLM, Qwen3ForCausalLM):
    config_class = PrunecastQwen3Config
    model_class = PrunecastQwen3Model


CAUSAL_LM_CLASSES: dict[str, Any] = {
    cls.config_class.base_model_type: cls
    for cls in (
        PrunecastLlamaForCausalLM,
        PrunecastMistralForCausalLM,
        PrunecastQwen2ForCausalLM,
        PrunecastQwen3ForCausalLM,
    )
}

for _cls in CAUSAL_LM_CLASSES.values():  # `save_pretrained` then copies this file and writes `auto_map`
    _cls.config_class.register_for_auto_class()
    _cls.model_class.register_for_auto_class("AutoModel")
    _cls.register_for_auto_class("AutoModelForCausalLM")


def auto_map(config_class: type[PreTrainedConfig]) -> dict[str, str]:
    """The entry of config.json that leads the Auto classes to this file."""
    causal_lm = next(c for c in CAUSAL_LM_CLASSES.values() if c.config_class is config_class)
    classes = {
        "AutoConfig": config_class,
        "AutoModel": causal_lm.model_class,
        "AutoModelForCausalLM": causal_lm,
    }
    return {name: f"modeling_prunecast.{cls.__name__}" for name, cls in classes.items()}


def register() -> None:
    """Let the Auto classes of this process load exported folders without remote code."""
    for cls in CAUSAL_LM_CLASSES.values():
        AutoConfig.register(cls.config_class.model_type, cls.config_class, exist_ok=True)
        AutoModel.register(cls.config_class, cls.model_class, exist_ok=True)
        AutoModelForCausalLM.register(cls.config_class, cls, exist_ok=True)
