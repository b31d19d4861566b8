"""How well the latency table forecasts exported models: the figures of this folder's README.

    python -m tests.benchmarks.latency [--threads 1] [--ratio 0.25]

Dense, uniform, simple and scattered architectures of params.yaml's model are exported and timed in turn,
as `budget.latency` says; beside each median stand the forecast and its error.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from stages.architecture import Architecture, Kind, ModelShape
from stages.config.params import load_params
from stages.evaluate.network import checkpoint
from stages.evaluate.network.elastic import DenseNetwork
from stages.export.weights import huggingface
from stages.families import register
from stages.sample import designs, timing
from stages.sample.latency import table_of
from stages.sample.space import Space
from stages.sample.timing import PHASES
from tests.benchmarks.deployment import scattered


def holed(shape: ModelShape) -> Architecture:
    """Every fourth attention and every fifth MLP dropped, every seventh layer at half its width."""
    sites = {s: 1.0 for s in shape.sites() if s.layer % (4 if s.kind is Kind.ATTENTION else 5) == 2}
    sites |= {s: 0.5 for s in shape.sites() if s.layer % 7 == 1}
    return Space(shape, 32, {}).from_ratios(sites)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int)
    parser.add_argument("--ratio", type=float, default=0.25)
    arguments = parser.parse_args()
    section = load_params()
    latency = section.budget.latency.model_copy(update={"threads": arguments.threads})
    budget = section.budget.model_copy(update={"overall_ratio": arguments.ratio, "latency": latency})
    loaded = checkpoint.load(section.model)
    shape, sample = loaded.shape, section.sample
    table = table_of(shape, budget, sample.mlp_granularity)
    found = {d.design: d.architecture for d in designs.baselines(shape, sample, budget)}
    found |= {f"scattered {s}": scattered(shape, arguments.ratio, 0.3, s) for s in range(2)}
    found |= {"scattered, 45 %": scattered(shape, 0.45, 0.3, 2), "dropped sublayers": holed(shape)}
    network = DenseNetwork(loaded, torch.device("cpu"))
    register()
    models: list[Any] = []
    with tempfile.TemporaryDirectory() as name:
        for index, architecture in enumerate(found.values()):
            folder, state = Path(name) / str(index), network.sliced_state(architecture)
            dtype = getattr(torch, budget.dtype)
            huggingface.write_folder(folder, state, loaded.config, architecture, shape, None, None, dtype)
            models.append(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval())
        times = timing.times(models, shape.vocabulary, latency, "exported models")
    print("| architecture | overall ratio | " + " | ".join(f"{p}: forecast, measured, error" for p in PHASES))
    print("| --- | --- | --- | --- |")
    for (label, architecture), measured in zip(found.items(), times, strict=True):
        cells = [label, f"{100 * architecture.overall_ratio(shape):.1f} %"]
        for phase in PHASES:
            forecast, median = table.forecast(phase, architecture), measured.median(phase)
            cells.append(f"{forecast:.1f}, {median:.1f}, {100 * (forecast / median - 1):+.1f} %")
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
