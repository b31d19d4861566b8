"""Other methods: what each of them is by definition, and that they count what they measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.architecture import Architecture, Kind, Site
from stages.config.params import Narrowing
from stages.metrics.objective import objective_of
from stages.search import allocation
from tests import tiny
from tests.benchmarks.study import baselines
from tests.benchmarks.study.baselines import EvaluationCounter, Problem
from tests.conftest import TinyFolder
from tests.small import COMMITTED, SMALL, SMOLLM2, budget_of, features_of

WEIGHTS = {"log_ppl.a": 1.0}
SAMPLE = COMMITTED.sample.model_copy(
    update={"mlp_granularity": 4, "first_layers_kept": 1, "last_layers_kept": 1, "bundle": 2}
)
PROBLEM = Problem(SMALL, SAMPLE, budget_of(overall_ratio=0.3, tolerance=0.03), WEIGHTS, 0)
COSTS = np.random.default_rng(2).exponential(size=12)


class Meter:
    """An additive law, and how often it was asked."""

    def __init__(self) -> None:
        self.asked: list[Architecture] = []

    def __call__(self, architectures: Sequence[Architecture]) -> Mapping[Architecture, dict[str, float]]:
        self.asked += architectures
        return {a: {"log_ppl.a": self.law(a)} for a in architectures}

    @staticmethod
    def law(architecture: Architecture) -> float:
        ratios = np.array([architecture.site_ratio(SMALL, site) for site in SMALL.sites()])
        return float(3 + COSTS @ ratios**2)


def counter() -> tuple[EvaluationCounter, Meter]:
    meter = Meter()
    return EvaluationCounter(meter, WEIGHTS), meter


def in_budget(architecture: Architecture, problem: Problem = PROBLEM) -> bool:
    over = architecture.overall_ratio(problem.shape) - problem.ratio
    return -1e-9 <= over <= problem.budget.tolerance + 1e-9


def test_the_counter_measures_an_architecture_once():
    count, meter = counter()
    starts = PROBLEM.starts()
    first = count([*starts, starts[0]])
    assert count(starts) == first[:2]
    assert first[2] == first[0]
    assert count.evaluations == len(meter.asked) == 2
    assert count.best(starts) == starts[int(np.argmin(first[:2]))]
    assert count.best(starts, first=1) == starts[0]


METHODS = {
    "random": lambda problem, count: baselines.best_of_random(problem, count, 30),
    "evolution": lambda problem, count: baselines.evolution(problem, count, 60, offspring=4),
    "greedy": baselines.greedy,
    "drop layers": lambda problem, count: baselines.drop_layers(problem, count, [3, 1, 2, 5, 4, 6]),
    "drop attention": baselines.drop_attention,
}


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_returns_is_measured_and_within_the_budget(name: str):
    count, meter = counter()
    found = METHODS[name](PROBLEM, count)
    assert found in count.known
    assert in_budget(found)
    assert len(meter.asked) == len(set(meter.asked)) == count.evaluations
    again, _ = counter()
    assert METHODS[name](PROBLEM, again) == found


def test_evolution_improves_and_spends_what_it_may():
    count, _ = counter()
    found = baselines.evolution(PROBLEM, count, 100, offspring=1)
    assert count.evaluations == 100
    starts = [objective_of(count.known[a], WEIGHTS) for a in PROBLEM.starts()]
    assert objective_of(count.known[found], WEIGHTS) < min(starts) - 0.05
    assert all(in_budget(a) for a in count.known)
    other, _ = counter()
    assert baselines.evolution(replace(PROBLEM, seed=1), other, 100, offspring=1) != found
    short, _ = counter()  # a shorter run is the beginning of a longer one
    baselines.evolution(PROBLEM, short, 40, offspring=1)
    assert list(short.known) == list(count.known)[:40]


def test_greedy_comes_near_the_best_of_an_additive_law():
    count, _ = counter()
    damage = Meter.law(baselines.greedy(PROBLEM, count)) - 3
    long, _ = counter()
    evolved = Meter.law(baselines.evolution(PROBLEM, long, 600, offspring=1)) - 3
    assert damage <= 1.05 * evolved
    assert damage <= 0.8 * min(Meter.law(a) - 3 for a in PROBLEM.starts())


def test_the_cheapest_cuts_are_taken_first():
    space = PROBLEM.space
    cheap = {Site(2, Kind.MLP), Site(4, Kind.MLP)}
    wishes = allocation.cheapest(space, lambda site, ratio: ratio * (1 if site in cheap else 9), 0.1)
    assert {site for site, ratio in wishes.items() if ratio > 0} <= cheap
    removed = sum(ratio * space.weights[site] for site, ratio in wishes.items())
    assert removed == pytest.approx(0.1 * SMALL.decoder_parameters)
    everything = allocation.cheapest(space, lambda site, ratio: ratio, 1.0)
    assert set(everything.values()) == {1.0}


def test_layers_of_least_influence_go_first():
    problem = replace(PROBLEM, budget=budget_of(overall_ratio=1 / 3, tolerance=0.02))
    count, _ = counter()
    found = baselines.drop_layers(problem, count, [9, 0.5, 8, 0.1, 7, 6])
    gone = [i for i, width in enumerate(found.widths) if not width.has_attention and not width.has_mlp]
    assert gone == [1, 3]
    assert all(found.widths[i] == SMALL.widest for i in (0, 2, 4, 5))


@pytest.mark.parametrize(("ratio", "dropped"), [(0.2, 1), (0.3, 3), (0.4, 5)])
def test_the_number_of_dropped_attentions_is_2ssps(ratio: float, dropped: int):
    """Equation 5 with α = 1.5; in SmolLM2 an MLP has three times the parameters of an attention."""
    problem = Problem(SMOLLM2, COMMITTED.sample, budget_of(overall_ratio=ratio, tolerance=0.005), WEIGHTS, 0)
    cost = np.arange(30.0)  # of dropping a layer's attention

    def measure(architectures: Sequence[Architecture]) -> dict[Architecture, dict[str, float]]:
        gone = {a: sum(cost[i] for i, w in enumerate(a.widths) if not w.has_attention) for a in architectures}
        return {a: {"log_ppl.a": 3 + value} for a, value in gone.items()}

    count = EvaluationCounter(measure, WEIGHTS)
    found = baselines.drop_attention(problem, count)
    assert [i for i, w in enumerate(found.widths) if not w.has_attention] == list(range(dropped))
    assert count.evaluations == 1 + sum(30 - i for i in range(dropped))
    assert in_budget(found, problem)


def test_the_paper_measures_its_pairs_and_its_finalists(tmp_path: Path):
    sample = SAMPLE.model_copy(update={"bundled": 40, "free": 20, "spread": 0, "single_site_ratios": []})
    problem = replace(PROBLEM, sample=sample, budget=budget_of(overall_ratio=0.2, tolerance=0.03))
    narrow = Narrowing(
        by="importance",
        sensitive=0.3,
        sensitive_ratios=[0.1, 0.3],
        insensitive=0.3,
        insensitive_ratios=[0.2, 0.7],
        other_ratios=[0.1, 0.5],
    )
    train = COMMITTED.train_predictor.model_copy(update={"trees": 30, "learning_rate": 0.05})
    count, _ = counter()
    found = baselines.paper(problem, count, features_of(tmp_path), train, narrow, 300, 5)
    assert count.evaluations == 65
    assert in_budget(found, problem)
    assert found in list(count.known)[-5:]
    assert found.widths[0] == found.widths[5] == SMALL.widest  # the design leaves the ends dense


def test_block_influence_is_one_minus_the_mean_cosine(tiny_folder: TinyFolder):
    network = tiny.network_of(tiny_folder("llama"))
    tokens = torch.arange(21).view(3, 7)
    found = baselines.block_influence(network, [tiny.causal(tokens[:2]), tiny.causal(tokens[2:])])
    model = tiny.reference(tiny_folder("llama"))
    with torch.no_grad():
        states = model.model(tokens, output_hidden_states=True, use_cache=False).hidden_states
    for layer in range(network.shape.layers - 1):  # the last state of transformers is normed
        cosine = torch.cosine_similarity(states[layer], states[layer + 1], dim=-1)
        assert found[layer] == pytest.approx(float(1 - cosine.mean()), abs=1e-5)
