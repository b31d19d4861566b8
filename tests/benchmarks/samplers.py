"""Samplers at equal forecasts: TPE, NSGA-II and random search of one narrowed space with one predictor.

    python -m tests.benchmarks.samplers --data data                  # pairs and predictor of a finished run
    python -m tests.benchmarks.samplers --synthetic                  # made-up pairs of SmolLM2-135M's shape
    python -m tests.benchmarks.samplers --synthetic --from-nothing   # without the search's good start

Each sampler asks the search of the pipeline (`stages.search.tpe`) for the best forecast within
params.yaml's budget, with several seeds; the best forecast objective (nats a token, lower is better)
and the CPU seconds of a search are printed. The start is the pipeline's first one, the cheapest cuts by
damage curves; half of the forecasts are of bundled sites, before it. Nothing is measured.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from stages import params
from stages.architecture import Architecture, ModelShape
from stages.build_dataset import table
from stages.build_dataset.damage import DamageCurves
from stages.build_dataset.features import Features
from stages.files import InputError
from stages.params import Params, Search
from stages.sample import designs
from stages.search import allocation, narrowing, tpe
from stages.search.tpe import Question, objective_of
from stages.train_predictor.predictor import Predictor
from tests.small import SMOLLM2, write_scores

SAMPLERS = ("tpe", "nsga2", "random")
NOISE = 0.01
"""Nats a token, of a made-up measurement."""


@dataclass(frozen=True)
class Setting:
    """What every sampler is given alike."""

    question: Question
    starts: Sequence[Architecture]


@dataclass(frozen=True)
class Result:
    """The best forecast objective of each seed, and the mean CPU seconds of a search."""

    sampler: str
    forecasts: int
    best: Sequence[float]
    cpu_s: float


def synthetic(shape: ModelShape, section: Params) -> tuple[Features, pd.DataFrame, Predictor]:
    """Pairs of params.yaml's designs under a made-up law, and the predictor that learns from them.

    A site costs by a power of its ratio, both ends of the model more, neighbours more together.
    """
    rng = np.random.default_rng(0)
    sites = list(shape.sites())
    depth = np.array([site.layer for site in sites]) / (shape.layers - 1)
    costs = rng.exponential(0.05, len(sites)) * (1 + 4 * np.exp(-12 * depth) + 2 * np.exp(-9 * (1 - depth)))
    powers = rng.uniform(1.2, 2.2, len(sites))

    def measured(architecture: Architecture) -> dict[str, float]:
        ratios = np.array([architecture.site_ratio(shape, site) for site in sites])
        cost = costs @ ratios**powers + 0.02 * (ratios[2:] * ratios[:-2]).sum()
        signs = {target: 1 if target.startswith("log_ppl.") else -1 for target in section.search.objective}
        return {t: sign * (3 + cost + rng.normal(0, NOISE)) for t, sign in signs.items()}

    designed = designs.all_designs(shape, section.sample, section.budget)
    metrics = {d.architecture: measured(d.architecture) for d in designed}
    texts = [t.removeprefix("log_ppl.") for t in section.search.objective if t.startswith("log_ppl.")]
    curves = DamageCurves.of_pairs(shape, metrics, texts)
    with tempfile.TemporaryDirectory() as folder:
        write_scores(Path(folder) / "scores", shape)
        features = Features.of_model(shape, section.sample.bundle, Path(folder) / "scores", curves)
    by_id = {a.id: values for a, values in metrics.items()}
    targets, split = list(section.search.objective), section.build_dataset
    pairs = table.build(designed, by_id, features, targets, split.seed, split.held_out)
    return features, pairs, Predictor.fit(pairs, features.names, targets, section.train_predictor)


def finished(data: Path, section: Params) -> tuple[Features, pd.DataFrame, Predictor]:
    """Features, pairs and predictor of a run whose stages up to train-predictor are done."""
    shape, _ = designs.read(data / "sample" / "architectures.json")
    curves = DamageCurves.read(data / "build_dataset" / "damage.json")
    scores = data / "evaluate" / "importance.safetensors"
    features = Features.of_model(shape, section.sample.bundle, scores, curves)
    pairs, _, _ = table.read(data / "build_dataset" / "pairs.parquet")
    return features, pairs, Predictor.load(data / "train_predictor" / "predictor")


def setting_of(
    features: Features, pairs: pd.DataFrame, predictor: Predictor, section: Params, from_nothing: bool
) -> Setting:
    """The pipeline's question of its first round, at params.yaml's overall ratio, and its start.

    `from_nothing` has no start, nor has a run without damage curves.

    Raises:
        InputError: the budget states no overall ratio.
    """
    ratio = section.budget.overall_ratio
    if ratio is None:
        raise InputError("params.yaml: budget.overall_ratio is null; samplers are compared at one: set it")
    granularity = section.sample.mlp_granularity
    _, space = narrowing.narrowed(section.search, granularity, predictor, features, pairs)

    def forecast(architecture: Architecture) -> Mapping[str, float]:
        found = predictor.forecast(features.row(architecture)[None])
        return {target: float(values[0]) for target, values in found.items()}

    question = Question(space, ratio, section.budget.tolerance, forecast, 0, "samplers")
    if from_nothing or features.curves is None:
        return Setting(question, [])
    return Setting(question, [question.project(allocation.cheapest(space, features.curves.damage, ratio))])


def compare(setting: Setting, search: Search, forecasts: Sequence[int], seeds: int) -> Iterator[Result]:
    """Every sampler at every number of forecasts, with seeds 0, 1, …"""
    for trials in forecasts:
        for sampler in SAMPLERS:
            section = search.model_copy(update={"sampler": sampler, "trials": trials})
            best, start = [], time.process_time()
            for seed in range(seeds):
                question = Question(**setting.question.__dict__ | {"seed": seed})
                best.append(min(t.objective for t in tpe.search(question, section, setting.starts)))
            yield Result(sampler, trials, best, (time.process_time() - start) / seeds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="folder of a finished run, made with this params.yaml")
    source.add_argument("--synthetic", action="store_true")
    parser.add_argument("--from-nothing", action="store_true", help="without the cheapest cuts as a start")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--forecasts", type=int, nargs="+", default=[200, 400, 1000])
    arguments = parser.parse_args()
    section = params.load()
    made = synthetic(SMOLLM2, section) if arguments.synthetic else finished(arguments.data, section)
    setting = setting_of(*made, section, arguments.from_nothing)
    for architecture in setting.starts:
        forecast = objective_of(setting.question.forecast(architecture), section.search.objective)
        print(f"the start, the cheapest cuts by damage curves, is forecast at {forecast:.4f}")
    print("| forecasts | sampler | best forecast objective: mean (min to max) | CPU s a search |")
    print("| --- | --- | --- | --- |")
    for r in compare(setting, section.search, arguments.forecasts, arguments.seeds):
        spread = f"{np.mean(r.best):.4f} ({min(r.best):.4f} to {max(r.best):.4f})"
        print(f"| {r.forecasts:,} | {r.sampler} | {spread} | {r.cpu_s:.1f} |", flush=True)


if __name__ == "__main__":
    main()
