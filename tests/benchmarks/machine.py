"""What the benchmarks share: the machine, its clock, its memory, and the limit that it sets."""

from __future__ import annotations

import ctypes
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from stages import flops
from stages.architecture import Architecture, ModelShape
from stages.evaluate.network.decoder import PREDICTIONS_AT_ONCE, Decoder
from stages.evaluate.network.fused import VOCABULARY_AT_ONCE


@dataclass(frozen=True)
class Machine:
    """A device, and the dtype that is used on it."""

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, device: str) -> Machine:
        """`auto`, `cpu` or `cuda`: the GPU in bfloat16, the CPU in float32."""
        cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
        return cls(torch.device("cuda" if cuda else "cpu"), torch.bfloat16 if cuda else torch.float32)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def __str__(self) -> str:
        name = torch.cuda.get_device_name() if self.cuda else f"{torch.get_num_threads()} CPU threads"
        return f"{name}, {self.dtype}, PyTorch {torch.__version__}"

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def timed(self, contenders: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
        """Seconds of each contender, run in turn `repeats` times after a warm-up round."""
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for round_ in range(repeats + 1):
            for name, run in contenders.items():
                self.wait()
                start = time.perf_counter()
                run()
                self.wait()
                if round_:
                    seconds[name].append(time.perf_counter() - start)
        return seconds

    def peak_bytes(self, run: Callable[[], object]) -> int:
        """Memory that `run` holds at most beyond what is held before: allocated on a GPU, resident on a CPU.

        On a CPU that is by page: what `run` frees and takes again counts once.
        """
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run()
            return torch.cuda.max_memory_allocated() - before
        ctypes.CDLL(None).malloc_trim(0)  # or what the allocator keeps would be used first, and not be seen
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak (proc(5))
        before = _resident("VmRSS")
        run()
        return _resident("VmHWM") - before

    def process_peak_bytes(self) -> int:
        """The most that this process held since it started (since the last `peak_bytes` on a GPU)."""
        return (
            torch.cuda.max_memory_allocated()
            if self.cuda
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def spread(values: list[float]) -> str:
    """Median (minimum to maximum)."""
    return f"{statistics.median(values):,.4g} ({min(values):,.4g} to {max(values):,.4g})"


def large_product_flops(machine: Machine) -> float:
    """FLOP/s of one large square matrix product."""
    size = 8192 if machine.cuda else 2048
    a, b = (torch.randn(size, size, device=machine.device).to(machine.dtype) for _ in range(2))
    return 2 * size**3 / statistics.median(machine.timed({"product": lambda: a @ b}, 10)["product"])


def matrix_products(machine: Machine, network: Decoder, tokens: int) -> tuple[Callable[[], None], int]:
    """The dense model's matrix products and nothing else, on random activations; and their FLOPs.

    Every layer's seven and the head's, grouped as the network groups them.
    """
    shape = network.shape
    heads = shape.kv_groups * shape.heads_per_group * shape.head_dim
    hidden, mixed, channels = (
        torch.randn(tokens, size, device=machine.device).to(machine.dtype)
        for size in (shape.hidden, heads, shape.channels)
    )
    rows = PREDICTIONS_AT_ONCE[machine.device.type]
    blocks = network.head.split(shape.vocabulary if machine.cuda else VOCABULARY_AT_ONCE)
    pairs = [
        pair
        for layer in network.layers
        for pair in (
            *((hidden, weight) for weight in (layer.q.flatten(0, 1), layer.k, layer.v, layer.gate, layer.up)),
            (mixed, layer.o.flatten(1)),
            (channels, layer.down),
        )
    ]
    pairs += [(part, block) for part in hidden.split(rows) for block in blocks]

    def products() -> None:
        for x, weight in pairs:
            F.linear(x, weight)

    return products, sum(2 * len(x) * weight.numel() for x, weight in pairs)


def token_flops(shape: ModelShape, architecture: Architecture, length: int, head: bool = True) -> float:
    """FLOPs a token of windows of `length`: the plan's, and the head's."""
    of_head = 2 * shape.vocabulary * shape.hidden if head else 0
    return flops.token_flops(shape, architecture.widths, length / 2) + of_head
