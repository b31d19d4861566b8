"""Samplers at equal forecasts: TPE, NSGA-II and random search of one narrowed space with one predictor.

    python -m tests.benchmarks.samplers --data data                  # pairs and predictor of a finished run
    python -m tests.benchmarks.samplers --synthetic                  # made-up pairs of SmolLM2-135M's shape
    python -m tests.benchmarks.samplers --synthetic --from-nothing   # as if there were no damage curves

Each sampler asks the search of the pipeline (`stages.search.studies`) for the best forecast within
params.yaml's budget, with several seeds; the best forecast objective (nats a token, lower is better)
and the CPU seconds of a search are printed. With damage curves all start from the cheapest cuts by
these and search their prices; without, from an even cut. Nothing is measured.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from stages.architecture import Architecture, ModelShape
from stages.build_dataset import table
from stages.build_dataset.features import Features
from stages.config.params import Params, Search, load_params
from stages.evaluate.results.damage import DamageCurves
from stages.files import InputError
from stages.metrics.objective import objective_of
from stages.metrics.perplexity import LOG_PPL
from stages.metrics.registered import by_corpus, metric_of
from stages.sample import designs
from stages.search import allocation, narrowing, studies
from stages.search.studies import SearchTask
from stages.train_predictor.predictor import Predictor
from tests.small import SMOLLM2, write_scores

SAMPLERS = ("tpe", "nsga2", "random")
NOISE = 0.01
"""Nats a token, of a made-up measurement."""
MISTAKE = 0.4
"""Standard deviation of the logarithm of what made-up damage curves are wrong by, a factor a site."""


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
        return {t: metric_of(t).cost(3 + cost + rng.normal(0, NOISE)) for t in section.search.objective}

    designed = designs.all_designs(shape, section.sample, section.budget)
    metrics = {d.architecture: measured(d.architecture) for d in designed}
    texts = list(by_corpus(section.search.objective, LOG_PPL))
    wrong = costs * np.exp(rng.normal(0, MISTAKE, len(sites)))
    expected = {
        site: [(r, float(cost * r**power)) for r in (0.1, 0.3, 0.5, 0.7, 0.9)]
        for site, cost, power in zip(sites, wrong, powers, strict=True)
    }
    curves = DamageCurves.of_pairs(shape, metrics, texts, DamageCurves(expected))
    with tempfile.TemporaryDirectory() as folder:
        write_scores(Path(folder) / "scores", shape)
        features = Features.of_model(shape, section.build_dataset.band, Path(folder) / "scores", curves)
    by_id = {a.id: values for a, values in metrics.items()}
    targets, split = list(section.search.objective), section.build_dataset
    pairs = table.build(designed, by_id, features, targets, split.seed, split.held_out)
    return features, pairs, Predictor.fit(pairs, features.names, targets, section.train_predictor)


def finished(data: Path, section: Params) -> tuple[Features, pd.DataFrame, Predictor]:
    """Features, pairs and predictor of a run whose stages up to train-predictor are done."""
    shape, _ = designs.read(data / "sample" / "architectures.json")
    curves = DamageCurves.read(data / "build_dataset" / "damage.json")
    scores = data / "evaluate" / "importance.safetensors"
    features = Features.of_model(shape, section.build_dataset.band, scores, curves)
    pairs, _, _ = table.read(data / "build_dataset" / "pairs.parquet")
    return features, pairs, Predictor.load(data / "train_predictor" / "predictor")


def question_of(
    features: Features, pairs: pd.DataFrame, predictor: Predictor, section: Params, from_nothing: bool
) -> SearchTask:
    """The pipeline's question of its first round, at params.yaml's overall ratio.

    `from_nothing` leaves the damage curves out of the search, not of the features.

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

    damage = None if from_nothing or features.curves is None else features.curves.damage
    return SearchTask(space, ratio, section.budget.tolerance, forecast, 0, "samplers", damage=damage)


def compare(question: SearchTask, search: Search, forecasts: Sequence[int], seeds: int) -> Iterator[Result]:
    """Every sampler at every number of forecasts, with seeds 0, 1, …"""
    for count in forecasts:
        for sampler in SAMPLERS:
            section = search.model_copy(update={"sampler": sampler, "trials": count})
            best, start = [], time.process_time()
            for seed in range(seeds):
                trials = studies.search(replace(question, seed=seed), section)
                best.append(min(trial.objective for trial in trials))
            yield Result(sampler, count, best, (time.process_time() - start) / seeds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="folder of a finished run, made with this params.yaml")
    source.add_argument("--synthetic", action="store_true")
    parser.add_argument("--from-nothing", action="store_true", help="without damage curves in the search")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--forecasts", type=int, nargs="+", default=[200, 400, 1000])
    arguments = parser.parse_args()
    section = load_params()
    made = synthetic(SMOLLM2, section) if arguments.synthetic else finished(arguments.data, section)
    question = question_of(*made, section, arguments.from_nothing)
    if question.damage is not None:
        wishes = allocation.cheapest(question.space, question.damage, question.overall_ratio)
        start = question.forecast(question.project(wishes))
        print(f"the cheapest cuts by damage curves: {objective_of(start, section.search.objective):.4f}")
    print("| forecasts | sampler | best forecast objective: mean (min to max) | CPU s a search |")
    print("| --- | --- | --- | --- |")
    for r in compare(question, section.search, arguments.forecasts, arguments.seeds):
        spread = f"{np.mean(r.best):.4f} ({min(r.best):.4f} to {max(r.best):.4f})"
        print(f"| {r.forecasts:,} | {r.sampler} | {spread} | {r.cpu_s:.1f} |", flush=True)


if __name__ == "__main__":
    main()
