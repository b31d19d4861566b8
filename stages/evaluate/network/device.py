"""The device and dtype that a network runs on, and whether the GPU's kernels can be built there."""

from __future__ import annotations

import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import torch

from stages.config.params import Evaluate
from stages.files import InputError

FITS = 0.8
"""The part of what a GPU may still give that one thing may take."""


def device_and_dtype(section: Evaluate) -> tuple[torch.device, torch.dtype]:
    """Resolve `auto`: the GPU, in bfloat16 if it has that, where there is one; else the CPU in float32.

    Raises:
        InputError: a GPU is asked for and none is there, its kernels cannot be built, or it has no bfloat16.
    """
    name = device_named(section.device, "evaluate.device")
    dtype = section.dtype
    if name == "cuda":
        _check_triton()
        # Triton compiles for what the GPU has; PyTorch's emulation of bfloat16 is of no use to it.
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if dtype == "bfloat16" and not has_bfloat16:
            raise InputError(
                f"evaluate.dtype is 'bfloat16', which {torch.cuda.get_device_name()} does not have "
                "(GPUs from Ampere on do); use auto or float32"
            )
        if dtype == "auto":
            dtype = "bfloat16" if has_bfloat16 else "float32"
    return torch.device(name), getattr(torch, "float32" if dtype == "auto" else dtype)


def device_named(wanted: str, key: str) -> str:
    """The kind of device that the parameter `key` means: with `auto` a GPU where there is one.

    Raises:
        InputError: a GPU is asked for and none is there.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError(f"{key} is 'cuda', but PyTorch finds no GPU; use auto or cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def free_on(device: torch.device) -> float:
    """Bytes of a GPU that this process may still take, within what it was bounded to."""
    on_device, whole = torch.cuda.mem_get_info(device)
    taken, used = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
    bound = torch.cuda.get_per_process_memory_fraction(device) * whole
    return min(float(on_device), bound - taken) + taken - used


def fits(device: torch.device, size: float) -> bool:
    """Whether a GPU takes so many bytes more, with some left; host memory always does."""
    return device.type != "cuda" or size <= FITS * free_on(device)


def _check_triton() -> None:
    """Triton, in which the GPU's kernels are written, comes with PyTorch on Linux and compiles C."""
    if not find_spec("triton"):
        raise InputError(
            "the GPU's kernels need the package triton, which is not installed: pip install triton "
            "(on Windows triton-windows), or set evaluate.device to cpu"
        )
    if os.name != "posix":  # Triton for Windows has a compiler of its own
        return
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    if not any(map(shutil.which, compilers)):
        raise InputError(
            f"Triton compiles the GPU's kernels with a C compiler, and {' and '.join(map(repr, compilers))} "
            "cannot be found: install gcc, name another in the environment variable CC (or unset it), or "
            "set evaluate.device to cpu"
        )
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # as Triton does
    header = Path(sysconfig.get_path("include", scheme)) / "Python.h"
    if not header.exists():
        raise InputError(
            f"Triton compiles the GPU's kernels against Python's headers, and {header} is not there: "
            "install python3-dev (python3-devel), or set evaluate.device to cpu"
        )
