"""Proof that the exported folder is the measured network: loaded by a fresh process, logits compared."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from stages.evaluate.network.weights import PrunedNetwork
from stages.files import InputError

TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.25, torch.bfloat16: 2.0}
"""Largest logit difference that rounding to the exported dtype explains."""

_FRESH = """
import sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, dtype=torch.float32).eval()
with torch.inference_mode():
    logits = model(load_file(sys.argv[2])["tokens"]).logits
save_file({"logits": logits.contiguous()}, sys.argv[3])
"""


def logit_difference(folder: Path, network: PrunedNetwork, tokens: torch.Tensor) -> float:
    """The largest absolute logit difference on `tokens` (B, L) between folder and measured network.

    The folder is loaded by `AutoModelForCausalLM.from_pretrained` in a process of its own that
    does not see this package, in another directory.

    Raises:
        InputError: the folder cannot be loaded there.
    """
    ours = network.logits_of(tokens)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        save_file({"tokens": tokens.contiguous()}, work / "in.safetensors")
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "DVC_STAGE")}
        environment |= {"HF_MODULES_CACHE": str(work / "modules"), "HF_HUB_OFFLINE": "1"}
        arguments = [str(folder.resolve()), str(work / "in.safetensors"), str(work / "out.safetensors")]
        done = subprocess.run(
            [sys.executable, "-c", _FRESH, *arguments],
            cwd=work, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            tail = "\n".join(done.stderr.strip().splitlines()[-5:])
            raise InputError(f"{folder} does not load with from_pretrained in a fresh process:\n{tail}")
        theirs = load_file(work / "out.safetensors")["logits"]
    return float((ours - theirs).abs().max())


def check(difference: float, dtype: torch.dtype) -> None:
    """Raise InputError if the logits differ by more than the dtype's rounding explains."""
    if not difference <= TOLERANCE[dtype]:
        raise InputError(
            f"the exported folder's logits differ from the measured network's by {difference:.3g}; "
            f"expected at most {TOLERANCE[dtype]:g} in {dtype}. The export is wrong: please report this"
        )
