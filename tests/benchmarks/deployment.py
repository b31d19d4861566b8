"""Speed, memory and agreement of a randomly pruned model, in PyTorch and llama.cpp.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.deployment [--ratio 0.4] [--spread 0.3] [--seed 0]

Every site, attention and MLP alike, wishes for a ratio within `--spread` of `--ratio`; together they
meet it. Model, corpora, importance and repair are those of params.yaml. Needs neither MLflow nor DVC;
llama.cpp is measured where llama-cpp-python is installed.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path
from typing import Any

import torch

from stages.architecture import Architecture, ModelShape
from stages.config.params import load_params
from stages.evaluate.workbench import open_workbench
from stages.export.benchmark import proof
from stages.export.benchmark.runtimes import has_llama_cpp
from stages.export.gguf import folder as gguf_folder
from stages.export.weights import huggingface
from stages.sample.space import Space

TYPES = ("F16", "Q8_0", "Q4_0")


def scattered(shape: ModelShape, ratio: float, spread: float, seed: int) -> Architecture:
    rng = random.Random(seed)
    sites = list(shape.sites())
    space = Space(shape, 32, {site: (max(0.0, ratio - spread), ratio + spread) for site in sites})
    wishes = {site: rng.uniform(ratio - spread, ratio + spread) for site in sites}
    return space.project(wishes, ratio, 0.002, at_least=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ratio", type=float, default=0.4)
    parser.add_argument("--spread", type=float, default=0.3, help="at least 0.1: widths are discrete")
    parser.add_argument("--seed", type=int, default=0)
    proof.add_arguments(parser)
    arguments = parser.parse_args()
    section = load_params()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        bench = open_workbench(section, work)
        loaded, shape = bench.checkpoint, bench.network.shape
        architecture = scattered(shape, arguments.ratio, arguments.spread, arguments.seed)
        state = bench.network.sliced_state(architecture)
        export = work / "export"
        huggingface.write_folder(
            export / "model", state, loaded.config, architecture, shape, loaded.tokenizer, None, torch.float32
        )
        gguf_folder.write_folder(export / "gguf", section.model, loaded, state, architecture, TYPES)
        load = proof.load_of(section, loaded, bench.texts, proof.asked_for(arguments))
        found = proof.prove(section.model, loaded, export, architecture, load, work / "dense")
        kept = 1 - architecture.overall_ratio(shape)
        print(
            f"{section.model.source}, {100 * kept:.1f} % of the decoder layers kept, architecture "
            f"{architecture.id}; PyTorch {torch.__version__}\n"
        )
        proof.show(found, arguments.json)
        if has_llama_cpp():
            _generate(export / "gguf" / "model-F16.gguf")


def _generate(path: Path) -> None:
    """Show that the tokenizer and the chat template work: an answer in llama.cpp."""
    from llama_cpp import Llama

    model: Any = Llama(str(path), n_ctx=256, n_gpu_layers=0, verbose=False)
    question = "What is the capital of France?"
    answer = model.create_chat_completion(
        [{"role": "user", "content": question}], max_tokens=40, temperature=0
    )
    print(f"\n{question}\n{answer['choices'][0]['message']['content']}")


if __name__ == "__main__":
    main()
