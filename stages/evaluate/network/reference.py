"""The dense model as transformers runs it: where it writes text, a library does it best."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from stages.evaluate.network.checkpoint import Checkpoint
from stages.progress import without_bars


def reference(loaded: Checkpoint, device: torch.device) -> Any:
    """The model of a checkpoint, a second time: in float32 on a CPU, in bfloat16 on a GPU."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with without_bars():
        model: Any = AutoModelForCausalLM.from_pretrained(loaded.folder, dtype=dtype)
    return model.to(device).eval()
