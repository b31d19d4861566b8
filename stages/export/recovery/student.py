"""The model that is trained: pruned weights in transformers' own modules, as they are exported."""

from __future__ import annotations

from collections.abc import Mapping
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


def trained_state(model: Any, names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's tensors of these names, in float32 on the CPU."""
    state = model.state_dict()
    return {name: state[name].detach().to("cpu", torch.float32, copy=True) for name in names}
