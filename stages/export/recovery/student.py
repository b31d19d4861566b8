"""The model that is trained: pruned weights in transformers' own modules, as they are exported."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from torch import Tensor

from stages.evaluate.network.checkpoint import Checkpoint
from stages.evaluate.network.weights import PrunedWeights
from stages.families.modeling_prunecast import pruned_classes
from stages.families.pruned import pruned_config, settings_of


def student_of(loaded: Checkpoint, weights: PrunedWeights, dtype: torch.dtype, device: torch.device) -> Any:
    """A `PreTrainedModel` with these weights in `dtype`; a layer that lost everything keeps its number."""
    settings = settings_of(loaded.config, loaded.shape)
    config = pruned_config(loaded.family, settings, weights.architecture.widths)
    with init_empty_weights(include_buffers=False):
        model = pruned_classes(loaded.family.model_type).causal_lm(config)
    model.load_state_dict(dict(weights.make(dtype)), strict=False, assign=True)
    model.tie_weights()
    return model.to(device)


def base_of(model: Any) -> Any:
    """The model itself, of one that peft has put adapters into."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def state_now(model: Any) -> dict[str, Tensor]:
    """Its tensors as they are, where they lie, adapters merged; the head too where it is the embedding."""
    base = base_of(model)
    found = {
        name.replace(".base_layer.", "."): tensor.detach()
        for name, tensor in base.state_dict().items()
        if ".lora_" not in name
    }
    for name, delta in adapter_deltas(model).items():
        found[name] = (found[name].float() + delta).to(found[name].dtype)
    return found


def adapter_deltas(model: Any) -> dict[str, Tensor]:
    """What each adapter adds to the weight of its module (D, n), by the weight's name, in float32."""
    base = base_of(model)
    return {
        f"{name}.weight": module.get_delta_weight("default").detach().float()
        for name, module in base.named_modules()
        if hasattr(module, "get_delta_weight")
    }
