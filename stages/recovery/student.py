"""The model that is trained: pruned weights in transformers' own modules, as they are exported."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from peft.utils.integrations import dequantize_bnb_weight
from torch import Tensor

from stages.evaluate.network.checkpoint import Checkpoint
from stages.evaluate.network.weights import PrunedWeights, State
from stages.families.modeling_prunecast import pruned_classes
from stages.families.pruned import pruned_config, settings_of
from stages.files import InputError

DOWN, UP = ".down", ".up"
"""What the names of an adapter's factors end in."""


def student_of(loaded: Checkpoint, weights: PrunedWeights, dtype: torch.dtype, device: torch.device) -> Any:
    """A `PreTrainedModel` with these weights in `dtype`; a layer that lost everything keeps its number."""
    settings = settings_of(loaded.config, loaded.shape)
    config = pruned_config(loaded.family, settings, weights.architecture.widths)
    with init_empty_weights(include_buffers=False):
        model = pruned_classes(loaded.family.model_type).causal_lm(config)
    state = {n: t.clone() if t.is_inference() else t for n, t in weights.make(dtype).items()}
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    if loaded.shape.tied_embeddings:
        model._keys_to_ignore_on_save = {loaded.family.head}  # a checkpoint that lacks it is whole
    return model.to(device)


def base_of(model: Any) -> Any:
    """The model itself, of one that peft has put adapters into."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def quantised(model: Any, compute: torch.dtype, device: torch.device) -> Any:
    """The model on a device, its layers' projections in 4 bits (NF4), beside which adapters can be trained.

    Dettmers et al. 2023, arXiv 2305.14314.

    Raises:
        InputError: bitsandbytes is not installed.
    """
    try:
        import bitsandbytes
    except ModuleNotFoundError as error:
        raise InputError(
            "export.recovery.method is qlora, and the package bitsandbytes is not installed: "
            "pip install 'prunecast[recovery]', or set it to lora"
        ) from error
    nn: Any = bitsandbytes.nn  # in part without types
    for parent in list(model.model.layers.modules()):
        for name, linear in list(parent.named_children()):
            if isinstance(linear, torch.nn.Linear):
                size = linear.in_features, linear.out_features, linear.bias is not None
                small = nn.Linear4bit(*size, compute, quant_type="nf4", device="meta")
                small.weight = nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
                small.bias = linear.bias
                setattr(parent, name, small.to(device))
    model.is_loaded_in_4bit = True  # peft and the Trainer ask for it
    return model.to(device)


def state_now(model: Any) -> dict[str, Tensor]:
    """Its tensors as they compute, where they lie; the head too where it is the embedding.

    Adapters are merged, and what is quantised is as the arithmetic sees it.
    """
    base = base_of(model)
    packed = {
        name: weight
        for name, weight in base.named_parameters()
        if getattr(weight, "quant_state", None) is not None
    }
    found = {
        name: tensor.detach()
        for name, tensor in base.state_dict().items()
        if ".lora_" not in name and not name.startswith(tuple(packed))
    }
    found |= {name: dequantize_bnb_weight(weight) for name, weight in packed.items()}
    found = {name.replace(".base_layer.", "."): tensor for name, tensor in found.items()}
    return found | merged(found, adapters_of(model))


def adapters_of(model: Any) -> dict[str, Tensor]:
    """The factors of what each adapter adds to a weight (m, n): its name and ".down" (r, n), ".up" (m, r).

    In float32, the adapter's scale in the latter; of a model without adapters nothing.
    """
    found = {}
    for name, module in base_of(model).named_modules():
        if hasattr(module, "lora_A"):
            down, up = (factors["default"].weight.detach() for factors in (module.lora_A, module.lora_B))
            found[f"{name}.weight{DOWN}"] = down.float()
            found[f"{name}.weight{UP}"] = up.float() * module.scaling["default"]
    return found


def merged(weights: State, adapters: State) -> dict[str, Tensor]:
    """The weights that adapters change, as they are with them, each in its own dtype and place."""
    found = {}
    for name in (key.removesuffix(UP) for key in adapters if key.endswith(UP)):
        weight = weights[name]
        up, down = (adapters[name + factor].to(weight.device) for factor in (UP, DOWN))
        found[name] = torch.addmm(weight.float(), up, down).to(weight.dtype)
    return found
