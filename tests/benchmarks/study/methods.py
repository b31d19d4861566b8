"""The methods of the study, each as a function of a problem and the counter of real evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from stages.architecture import Architecture, ModelShape
from stages.build_dataset.features import Features
from stages.config.params import Narrowing, Params
from stages.sample import designs
from stages.search import allocation, narrowing
from stages.search.rounds import GuidedSearch, Metrics
from stages.train_predictor.predictor import Predictor
from tests.benchmarks.study import baselines
from tests.benchmarks.study.baselines import EvaluationCounter, Problem
from tests.benchmarks.study.setting import Setting

PAPER_NARROWING = Narrowing(
    by="importance",
    sensitive=0.3,
    sensitive_ratios=[0.1, 0.3],
    insensitive=0.3,
    insensitive_ratios=[0.2, 0.7],
    other_ratios=[0.1, 0.5],
)
PAPER_DESIGN = {"bundled": 400, "free": 125, "spread": 0, "single_site_ratios": []}


def ours(setting: Setting, params: Params, count: EvaluationCounter) -> Architecture:
    """The pipeline's own default: its pairs, its predictor, its rounds."""
    shape = setting.bench.network.shape
    designed = [d.architecture for d in designs.all_designs(shape, params.sample, params.budget)]
    count(designed)
    known = {a: count.known[a] for a in designed}
    features = setting.features(params, known)

    def measure(architectures: Sequence[Architecture], number: int) -> Mapping[Architecture, Metrics]:
        count(architectures)
        return {a: count.known[a] for a in architectures}

    guided = GuidedSearch(
        features,
        list(params.search.objective),
        params.search,
        params.train_predictor,
        params.budget,
        lambda predictor, table: narrowing.narrowed(
            params.search, params.sample.mlp_granularity, predictor, features, table
        )[1],
        measure,
    )
    first: Predictor = guided.learn(known)
    _, known = guided.run(known, first)
    return guided.best(known, params.budget.overall_ratio)[0]


def evaluations_of_ours(shape: ModelShape, params: Params) -> int:
    """What our default spends: baselines, pairs, and the architectures of its rounds."""
    designed = {d.architecture for d in designs.all_designs(shape, params.sample, params.budget)}
    return len(designed) + params.search.rounds * params.search.per_round


def resized(params: Params, spread: int, rounds: int) -> Params:
    """Our default with another number of pairs and rounds."""
    return params.model_copy(
        update={
            "sample": params.sample.model_copy(update={"spread": spread}),
            "search": params.search.model_copy(update={"rounds": rounds}),
        }
    )


def fewer(params: Params) -> Params:
    """What a user does where a measurement is dear: 8 pairs and three rounds."""
    return resized(params, 8, 3)


def more(params: Params) -> Params:
    """What a user does where a measurement is cheap: twice the rounds, and two."""
    return resized(params, params.sample.spread, 2 * params.search.rounds + 2)


Run = Callable[[Setting, Params, Problem, EvaluationCounter], Architecture]


def _paper(setting: Setting, params: Params, problem: Problem, count: EvaluationCounter) -> Architecture:
    sample = problem.sample.model_copy(update=PAPER_DESIGN)
    problem = Problem(problem.shape, sample, problem.budget, problem.weights, problem.seed)
    features = Features.of_model(problem.shape, params.build_dataset.band, setting.scores)
    return baselines.paper(problem, count, features, params.train_predictor, PAPER_NARROWING)


def _curvature(setting: Setting, params: Params, problem: Problem, count: EvaluationCounter) -> Architecture:
    """The cheapest cuts by the expected damage curves: one measurement, which chooses nothing."""
    found = problem.meet(allocation.cheapest(problem.space, setting.expected.damage, problem.ratio))
    count([found])
    return found


def _shortgpt(setting: Setting, params: Params, problem: Problem, count: EvaluationCounter) -> Architecture:
    batches = setting.bench.calibration.batches
    return baselines.drop_layers(problem, count, baselines.block_influence(setting.bench.network, batches))


def _start(place: int) -> Run:
    def run(setting: Setting, params: Params, problem: Problem, count: EvaluationCounter) -> Architecture:
        architecture = problem.starts()[place]
        count([architecture])
        return architecture

    return run


def checkpoints(shape: ModelShape, params: Params) -> list[int]:
    """The numbers of evaluations at which evolution is judged: those of ours, and twice the default's."""
    spent = [evaluations_of_ours(shape, p) for p in (fewer(params), params, more(params))]
    return sorted({*spent, 2 * spent[1]})


ALL: Mapping[str, Run] = {
    "uniform": _start(0),
    "simple": _start(1),
    "shortgpt": _shortgpt,
    "2ssp": lambda setting, params, problem, count: baselines.drop_attention(problem, count),
    "greedy": lambda setting, params, problem, count: baselines.greedy(problem, count),
    "random": lambda setting, params, problem, count: baselines.best_of_random(
        problem, count, evaluations_of_ours(problem.shape, params)
    ),
    "paper": _paper,
    "curvature": _curvature,
    "ours": lambda setting, params, problem, count: ours(setting, params, count),
    "ours-fewer": lambda setting, params, problem, count: ours(setting, fewer(params), count),
    # one child a generation: on validation text it did better than eight at equal evaluations
    "evolution": lambda setting, params, problem, count: baselines.evolution(
        problem, count, checkpoints(problem.shape, params)[-1], offspring=1
    ),
    "ours-more": lambda setting, params, problem, count: ours(setting, more(params), count),
}
SEEDLESS = ("uniform", "simple", "shortgpt", "2ssp", "greedy", "curvature")
"""Methods that draw nothing: they run once, as seed 0."""
