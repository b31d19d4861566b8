"""What machines can do: GPUs by their data sheets, this CPU by a second of matrix products."""

from __future__ import annotations

import math
import os
import re
import statistics
import time
from dataclasses import dataclass, replace

import psutil
import torch

from stages.files import InputError

GPU_FRACTIONS = ((576, 0.40), (4096, 0.56))
"""Hidden size, and what is reached of a data sheet's dense bfloat16 rate. Measured on one H100:
SmolLM2-135M on 32 x 2,048 tokens, and LLaMA-2-7B's shape with random weights, 512 x 128 tokens (0.59)
and 32 rows of 2,048 under a mask (0.56). GPUs with little memory bandwidth for their rate (L4) reach less."""
GPU_FRACTION_32, GPU_FRACTION_64 = 0.6, 0.5
"""What scores, curves and repairs reach, whose products are large: the first measured for LLaMA-2-7B's and
Qwen2.5-1.5B's shapes on one H100."""
GPU_LAYER_S = 0.0006
"""Seconds of each decoder layer and batch, however small: one of 4,600 tokens in 3 batches took the
same H100 about 0.05 s, nearly all of it spent on launching 30 layers' kernels."""
CPU_FRACTION = 0.8
"""The fraction of large products' rate that SmolLM2-135M's forward pass reaches (tests.benchmarks.speed)."""


@dataclass(frozen=True)
class Machine:
    """A device and what of its peak rates is reached.

    flops, flops32 and flops64 are FLOP/s of dense matrix products in the dtype that models are measured in
    (bfloat16 on a GPU, float32 on a CPU), in float32 and in float64.
    """

    name: str
    device: str
    flops: float
    flops32: float
    flops64: float
    memory_bytes: float
    fraction: float
    fraction_32: float
    fraction_64: float
    layer_s: float

    @property
    def bytes_each(self) -> int:
        """Bytes of a weight and of an activation."""
        return 2 if self.device == "cuda" else 4

    def seconds(self, flops: float, flops32: float, flops64: float, layers: int) -> float:
        """How long so much work takes, in `layers` calls of a decoder layer."""
        work = flops / (self.flops * self.fraction)
        work += flops32 / (self.flops32 * self.fraction_32) + flops64 / (self.flops64 * self.fraction_64)
        return work + layers * self.layer_s


def _gpu(name: str, tflops: float, tflops32: float, tflops64: float, gigabytes: float) -> Machine:
    rates = (tflops * 1e12, tflops32 * 1e12, tflops64 * 1e12)
    fractions = (GPU_FRACTIONS[-1][1], GPU_FRACTION_32, GPU_FRACTION_64)
    return Machine(name, "cuda", *rates, gigabytes * 1e9, *fractions, GPU_LAYER_S)


GPUS = {
    gpu.name: gpu
    for gpu in (
        # Dense bfloat16 (float32 accumulation), float32, float64, and memory: NVIDIA's data sheets.
        _gpu("A100 40GB", 312, 19.5, 9.7, 40),
        _gpu("A100 80GB", 312, 19.5, 9.7, 80),
        _gpu("H100", 989, 67, 34, 80),
        _gpu("H200", 989, 67, 34, 141),
        _gpu("L4", 121, 30, 0.47, 24),
        _gpu("L40S", 362, 92, 1.4, 48),
        _gpu("RTX 3090", 71, 36, 0.56, 24),
        _gpu("RTX 4090", 165, 83, 1.3, 24),
    )
}


def named(name: str, hidden: int) -> Machine:
    """A machine by name, in any case, for models of that hidden size: "cpu" is this one's, "here" its GPU.

    Raises:
        InputError: no such machine is known; the message lists those that are.
    """
    if name.lower() == "cpu":
        return this_cpu()
    if name.lower() == "here":
        return here(hidden)
    for known, gpu in GPUS.items():
        if known.lower() == name.lower():
            return replace(gpu, fraction=gpu_fraction(hidden))
    raise InputError(
        f"no GPU {name!r} is known; there are: {', '.join(GPUS)}, cpu for this machine's, and here for its "
        "GPU"
    )


def gpu_fraction(hidden: int) -> float:
    """What models of a hidden size reach: between the two that were measured, by its logarithm."""
    (narrow, low), (wide, high) = GPU_FRACTIONS
    place = math.log(hidden / narrow) / math.log(wide / narrow)
    return low + (high - low) * min(1.0, max(0.0, place))


def this_gpu(hidden: int) -> Machine:
    """This machine's GPU, with the memory that it has; one that is not known is taken for an A100."""
    name = torch.cuda.get_device_name()
    known = like(name)
    whole = torch.cuda.mem_get_info()[1]
    return replace(known, name=name, memory_bytes=whole, fraction=gpu_fraction(hidden))


def like(name: str) -> Machine:
    """The known GPU that a driver's name, such as "NVIDIA H100 80GB HBM3", is of; an A100 if none."""
    words = re.split(r"[\s-]+", name.lower())
    for known, gpu in GPUS.items():
        chip = known.lower().removesuffix(" 40gb").removesuffix(" 80gb").split()
        if any(words[at : at + len(chip)] == chip for at in range(len(words))):
            return gpu
    return GPUS["A100 80GB"]


def here(hidden: int) -> Machine:
    """What a run takes on this machine: its GPU, where PyTorch finds one."""
    return this_gpu(hidden) if torch.cuda.is_available() else this_cpu()


def this_cpu() -> Machine:
    """This machine's CPU, with as many threads as PyTorch takes: rates measured in about a second."""
    threads = torch.get_num_threads()
    return Machine(
        f"this CPU, {threads} of {os.cpu_count()} threads",
        "cpu",
        single := _product_rate(torch.float32),
        single,
        _product_rate(torch.float64),
        psutil.virtual_memory().total,
        CPU_FRACTION,
        CPU_FRACTION,
        CPU_FRACTION,
        0.0,
    )


def _product_rate(dtype: torch.dtype, size: int = 1024, budget_s: float = 0.5) -> float:
    """FLOP/s of a large square product, the median of as many as fit the time, after one to warm up."""
    a, b = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    torch.mm(a, b)
    seconds: list[float] = []
    while sum(seconds) < budget_s or len(seconds) < 3:
        start = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds)
