"""A decoder-only model whose layers differ in width. Tested with transformers 5.23.

Prunecast copies this file into every folder that it exports, so that the folder loads anywhere::

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

It needs torch and transformers, nothing of Prunecast. Where Prunecast is installed,
`stages.families.register()` lets the same folder load without remote code.

The widths follow transformers' own schema. ``config.per_layer_config`` names the layers that
differ from the dense model and how::

    {"3": {"num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 1024},
     "4": {"skip": ["attention"]},
     "5": {"skip": ["attention", "mlp"]}}

transformers 5.23 reads, checks and saves that schema but does not build it: its Llama refuses
widths and silently ignores ``skip``. So each model here builds its family's own decoder layers,
each with its own layer's configuration, and puts something that adds nothing in place of what a
layer skips: a skipped sublayer has no parameters, its norm included.

The classes of a family are made from transformers' own when they are asked for by name: of
``LlamaConfig``, ``LlamaModel`` and ``LlamaForCausalLM`` they are `PrunecastLlamaConfig`,
`PrunecastLlamaModel` and `PrunecastLlamaForCausalLM`, of the model type ``prunecast_llama``.
"""

# mypy: disable-error-code="no-untyped-call"
# (transformers leaves the __init_subclass__ of its models untyped)

import copy
import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn

if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 15):
    raise ImportError(
        "this model, whose layers differ in width, needs transformers 5.15 or newer; "
        f"{transformers.__version__} is installed: pip install --upgrade transformers"
    )
from huggingface_hub.dataclasses import strict  # transformers requires it of configurations
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

SUBLAYERS: Mapping[str, tuple[str, ...]] = {
    "attention": ("self_attn", "input_layernorm"),
    "mlp": ("mlp", "post_attention_layernorm"),
}
"""What a layer may skip, and the attributes of most families' layers that hold the module and its norms."""


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
            ValueError: a layer skips something unknown, has a width below 1, or has query heads that
                its key-value heads do not divide.
        """
        for layer in range(self.num_hidden_layers):  # type: ignore[attr-defined]
            width, skip = layer_config(self, layer), skipped(self, layer)
            if not skip <= SUBLAYERS.keys():
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

    def validate_rope(self) -> None:
        """Part of `@strict` too: families that ask for the number of heads here mean the dense model's."""
        self.allow_global_per_layer_attribute_access = True
        try:
            super().validate_rope()  # type: ignore[misc]
        finally:
            self.allow_global_per_layer_attribute_access = False


def layer_config(config: Any, layer: int) -> Any:
    """The configuration of one layer: `config` with that layer's widths."""
    return config.per_layer_config[layer]


def skipped(config: Any, layer: int) -> frozenset[str]:
    """Which sublayers that layer has not: some of "attention" and "mlp"."""
    return frozenset(getattr(layer_config(config, layer), "skip", ()))


class _NoAttn(nn.Module):  # spelt out, transformers would take it for an attention and refuse to switch ours
    """Stands in place of a skipped attention: adds nothing to the residual stream.

    transformers takes the length of the past from the cache's entry of the first layer of a kind, full or
    sliding. Where that layer skips its attention, an entry of one head of one element keeps it.
    """

    asked = False

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        kinds = getattr(config, "layer_types", None) or [None] * config.num_hidden_layers
        self.config, self.layer_idx = config, layer_idx
        self.keeps_length = kinds.index(kinds[layer_idx]) == layer_idx

    def forward(
        self, hidden_states: torch.Tensor, past_key_values: Any = None, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        if self.asked:  # never. vLLM wants an attention in every layer, and knows one by these two lines
            attention_interface = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
            attention_interface(self, hidden_states, hidden_states, hidden_states, **kwargs)
        if past_key_values is not None and self.keeps_length:
            entry = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            past_key_values.update(entry, entry, self.layer_idx)
        return hidden_states.new_zeros(()), None


class _NoMLP(nn.Module):
    """Stands in place of a skipped MLP: adds nothing to the residual stream."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states.new_zeros(())


def sublayers(config: Any) -> Mapping[str, tuple[str, ...]]:
    """`SUBLAYERS` under the family's own names: ``config.sublayers``, where they are not the usual ones."""
    return getattr(config, "sublayers", None) or SUBLAYERS


def pruned_layer(layer_class: Any, config: Any, index: int) -> nn.Module:
    """Decoder layer `index` of the family's own class, at its own widths and without what it skips."""
    layer: nn.Module = layer_class(layer_config(config, index), index)
    skip, names = skipped(config, index), sublayers(config)
    for sublayer in skip:
        module, *norms = names[sublayer]
        setattr(layer, module, _NoAttn(config, index) if sublayer == "attention" else _NoMLP())
        for norm in norms:
            setattr(layer, norm, nn.Identity())
    own = _following(layer_config(config, index), config)
    for part in layer.modules():
        if hasattr(part, "config"):
            part.config = own
    return layer


class _Following:
    """Mixed into a layer's configuration: its attention runs by the implementation of the whole model's.

    So `set_attn_implementation` reaches every layer.
    """

    @property
    def _attn_implementation(self) -> Any:
        return self.__dict__["whole"]._attn_implementation


def _following(own: Any, whole: Any) -> Any:
    """A layer's configuration whose implementation of attention is that of `whole`."""
    found = copy.copy(own)
    found.__class__ = type(own.__class__.__name__, (_Following, own.__class__), {"__module__": __name__})
    found.__dict__["whole"] = whole
    return found


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
        for index in range(config.num_hidden_layers):
            yield pruned_layer(self.layer_class, config, index)


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
        """None where layers skip their attention: the cache's entries are then shaped at their first use."""
        if any("attention" in skipped(self.config, layer) for layer in range(len(self.model.layers))):
            return None
        return super()._get_static_cache_init_shape()  # type: ignore[misc]


class PrunedClasses(NamedTuple):
    """A family's classes."""

    config: Any
    model: Any
    causal_lm: Any

    @property
    def auto_map(self) -> dict[str, str]:
        """The entry of config.json that leads the Auto classes to this file."""
        names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM")
        return {name: f"modeling_prunecast.{cls.__name__}" for name, cls in zip(names, self, strict=True)}


@functools.cache
def pruned_classes(model_type: str) -> PrunedClasses:
    """The classes of pruned models of a family of transformers, such as "llama".

    Raises:
        KeyError: transformers has no such family.
    """
    own_config = CONFIG_MAPPING[model_type]
    own_model: Any = MODEL_MAPPING[own_config]
    own_causal_lm: Any = MODEL_FOR_CAUSAL_LM_MAPPING[own_config]
    base_type: dict[str, Any] = {"base_model_type": model_type, "__annotations__": {"base_model_type": str}}
    config = strict(_define(_Widths, own_config, model_type=f"prunecast_{model_type}", **base_type))
    layer_class = own_model._can_record_outputs["hidden_states"]
    model = _define(_PrunedModel, own_model, config_class=config, layer_class=layer_class)
    causal_lm = _define(_PrunedForCausalLM, own_causal_lm, config_class=config, model_class=model)
    config.register_for_auto_class()  # `save_pretrained` then copies this file and writes `auto_map`
    model.register_for_auto_class("AutoModel")
    causal_lm.register_for_auto_class("AutoModelForCausalLM")
    return PrunedClasses(config, model, causal_lm)


def _define(mixin: type, own: type, **attributes: Any) -> Any:
    return type(own)(f"Prunecast{own.__name__}", (mixin, own), {"__module__": __name__, **attributes})


def __getattr__(name: str) -> Any:
    """A class by its name, such as `PrunecastLlamaForCausalLM`."""
    own = (
        getattr(transformers, name.removeprefix("Prunecast"), None) if name.startswith("Prunecast") else None
    )
    model_type = getattr(getattr(own, "config_class", own), "model_type", None)
    for cls in pruned_classes(model_type) if model_type in CONFIG_MAPPING else ():
        if cls.__name__ == name:
            return cls
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register(model_type: str) -> None:
    """Let the Auto classes of this process load exported folders of a family without remote code."""
    config, model, causal_lm = pruned_classes(model_type)
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(config, model, exist_ok=True)
    AutoModelForCausalLM.register(config, causal_lm, exist_ok=True)
