"""Other ways to choose an architecture, under one interface and one counter of real evaluations.

Each takes a `Problem` and an `EvaluationCounter`, and returns the best architecture that it measured. What
it knows of the model comes through the counter alone, so that methods compare at equal cost.
`stages.search.rounds` is ours, `stages.sample.designs` has uniform and simple.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from stages.architecture import Architecture, Kind, ModelShape, Site
from stages.build_dataset.features import Features
from stages.config.budget import Budget
from stages.config.params import Narrowing, Sample, TrainPredictor
from stages.evaluate.network.batch import Batch
from stages.evaluate.network.decoder import Decoder
from stages.evaluate.results.damage import DamageCurves
from stages.metrics.objective import objective_of
from stages.metrics.perplexity import LOG_PPL
from stages.metrics.registered import by_corpus
from stages.sample import designs
from stages.sample.space import Option, Space
from stages.search import allocation, narrowing
from stages.train_predictor.models import TargetModel

Metrics = Mapping[str, float]

# Amounts that a mutation moves, as fractions of a dense MLP's parameters, and how many at once.
_AMOUNTS = (1 / 16, 1 / 8, 1 / 4)
_MOST_SWITCHES = 3
_STRAY = 0.9  # from end to end, of a random architecture's sites around the overall ratio


@dataclass(frozen=True)
class Problem:
    """What is to be found: an architecture of a budget with the lowest objective."""

    shape: ModelShape
    sample: Sample
    budget: Budget
    weights: Mapping[str, float]
    seed: int

    @property
    def ratio(self) -> float:
        """The overall ratio; these methods know no other budget."""
        assert self.budget.overall_ratio is not None
        return self.budget.overall_ratio

    @cached_property
    def space(self) -> Space:
        """Every width of every site."""
        return Space(self.shape, self.sample.mlp_granularity, dict.fromkeys(self.shape.sites(), (0.0, 1.0)))

    def meet(self, wishes: Mapping[Site, float], space: Space | None = None) -> Architecture:
        """The architecture of the budget near the wished ratios; never larger than the budget allows."""
        return (space or self.space).project(wishes, self.ratio, self.budget.tolerance, at_least=True)

    def starts(self) -> list[Architecture]:
        """Uniform and simple, held to the budget as every contender is."""
        made = (f(self.shape, self.sample, self.budget) for f in (designs.uniform, designs.simple))
        return [self.meet({site: a.site_ratio(self.shape, site) for site in self.space.limits}) for a in made]


@dataclass
class EvaluationCounter:
    """Measures for real and counts: an architecture asked for again costs nothing."""

    measure: Callable[[Sequence[Architecture]], Mapping[Architecture, Metrics]]
    weights: Mapping[str, float]
    known: dict[Architecture, Metrics] = field(default_factory=dict)
    """What is measured, in the order of asking."""

    def __call__(self, architectures: Iterable[Architecture]) -> list[float]:
        """Objectives of the architectures, lower is better."""
        wanted = list(architectures)
        new = list(dict.fromkeys(a for a in wanted if a not in self.known))
        if new:
            found = self.measure(new)
            self.known |= {a: found[a] for a in new}
        return [objective_of(self.known[a], self.weights) for a in wanted]

    @property
    def evaluations(self) -> int:
        return len(self.known)

    def best(self, among: Iterable[Architecture], first: int | None = None) -> Architecture:
        """The best of those that are among the `first` measured; all if not given. Ties: the earlier."""
        wanted = set(among)
        order = [a for a in list(self.known)[:first] if a in wanted]
        return min(order, key=lambda a: objective_of(self.known[a], self.weights))


Method = Callable[[Problem, EvaluationCounter], Architecture]


def best_of_random(problem: Problem, count: EvaluationCounter, evaluations: int) -> Architecture:
    """The best of uniform, simple and random architectures of the budget."""
    rng = random.Random(problem.seed)
    made = problem.starts()
    while len(made) < evaluations:
        wishes = {site: rng.uniform(-_STRAY / 2, _STRAY / 2) for site in problem.space.limits}
        made.append(problem.meet(wishes))
    count(made)
    return count.best(made)


def evolution(
    problem: Problem, count: EvaluationCounter, evaluations: int, offspring: int = 8
) -> Architecture:
    """Direct evolution on measurements: (1 + λ), level switches at constant size.

    After EvoPress (Sieberling et al. 2024, arXiv 2410.14649): a mutation takes min(U, U') switches
    with U, U' uniform on 1..3; each cuts one site further and widens another by as many parameters.
    Unlike EvoPress every offspring is measured on all the text. Starts from the better of uniform
    and simple.
    """
    rng = random.Random(problem.seed)
    starts = problem.starts()
    count(starts)
    parent = count.best(starts)
    seen = set(starts)
    while count.evaluations < evaluations:
        children: list[Architecture] = []
        while len(children) < min(offspring, evaluations - count.evaluations):
            child = _mutated(problem, parent, rng)
            if child not in seen:
                seen.add(child)
                children.append(child)
        count(children)
        parent = count.best([parent, *children])
    return parent


def _mutated(problem: Problem, parent: Architecture, rng: random.Random) -> Architecture:
    space, shape = problem.space, problem.shape
    wishes = {site: parent.site_ratio(shape, site) for site in space.limits}
    for _ in range(min(rng.randint(1, _MOST_SWITCHES), rng.randint(1, _MOST_SWITCHES))):
        parameters = rng.choice(_AMOUNTS) * space.weights[Site(0, Kind.MLP)]
        for sign in (1, -1):
            room = [s for s, r in wishes.items() if (r < 1 if sign > 0 else r > 0)]
            site = rng.choice(room)
            wishes[site] = min(1.0, max(0.0, wishes[site] + sign * parameters / space.weights[site]))
    return problem.meet(wishes)


def greedy(
    problem: Problem, count: EvaluationCounter, ratios: Sequence[float] = (0.15, 0.3, 0.5, 0.7)
) -> Architecture:
    """Single-site greedy: each site's damage measured alone, then the cheapest cuts until the budget.

    Damages are taken to add up; no site is cut further than it was measured.
    """
    alone = designs.single_site(
        problem.shape, problem.sample.model_copy(update={"single_site_ratios": list(ratios)})
    )
    count([problem.shape.dense(), *(d.architecture for d in alone)])
    texts = list(by_corpus(problem.weights, LOG_PPL))
    curves = DamageCurves.of_pairs(problem.shape, count.known, texts)
    assert curves is not None
    limits = {site: (0.0, points[-1][0]) for site, points in curves.points.items()}
    space = Space(problem.shape, problem.sample.mlp_granularity, limits)
    found = problem.meet(allocation.cheapest(space, curves.damage, problem.ratio), space)
    count([found])
    return found


def block_influence(network: Decoder, batches: Sequence[Batch]) -> list[float]:
    """Each layer's block influence, 1 - the mean cosine of its input and output (ShortGPT, eq. 1).

    Men et al. 2024, arXiv 2403.03853. On the dense network, over all tokens of the batches.
    """
    depth = network.shape.layers
    totals, tokens = [0.0] * depth, 0
    with torch.inference_mode():
        for batch in batches:
            last, states = network.hidden_states(
                network.shape.dense(), batch.to(network.device), keep=range(depth)
            )
            for index in range(depth):
                after = states.get(index + 1, last)
                cosine = torch.cosine_similarity(states[index].float(), after.float(), dim=-1)
                totals[index] += float((1 - cosine).sum())
            tokens += batch.tokens.numel()
    return [total / tokens for total in totals]


def drop_layers(problem: Problem, count: EvaluationCounter, influence: Sequence[float]) -> Architecture:
    """Whole layers dropped, those of least block influence first (ShortGPT); the last one in part."""
    order = sorted(range(problem.shape.layers), key=lambda layer: influence[layer])
    each = problem.shape.decoder_parameters / problem.shape.layers
    wishes = dict.fromkeys(problem.space.limits, 0.0)
    left = problem.ratio * problem.shape.decoder_parameters
    for layer in order:
        share = min(1.0, max(0.0, left / each))
        wishes |= {Site(layer, kind): share for kind in Kind}
        left -= share * each
    architecture = problem.meet(wishes)
    count([architecture])
    return architecture


def drop_attention(problem: Problem, count: EvaluationCounter, alpha: float = 1.5) -> Architecture:
    """Attention sublayers dropped one by one by perplexity, the rest taken from all MLPs alike.

    After 2SSP (Sandri et al. 2025, arXiv 2501.17771), whose equation 5 gives the number of them,
    round(layers * s^(|MLP| / |attention| / α)); unlike 2SSP the channels go by our importance, and the
    perplexity that decides is measured with the MLPs pruned already, at the budget.
    """
    shape, space = problem.shape, problem.space
    ratio = problem.ratio
    power = space.weights[Site(0, Kind.MLP)] / space.weights[Site(0, Kind.ATTENTION)] / alpha
    dropped: list[int] = []
    best = problem.meet(_mlps_alike(problem, dropped))
    count([best])
    for _ in range(round(shape.layers * ratio**power)):
        layers = [layer for layer in range(shape.layers) if layer not in dropped]
        made = [problem.meet(_mlps_alike(problem, [*dropped, layer])) for layer in layers]
        objectives = count(made)
        place = min(range(len(made)), key=lambda i: objectives[i])
        dropped.append(layers[place])
        best = made[place]
    return best


def _mlps_alike(problem: Problem, dropped: Sequence[int]) -> dict[Site, float]:
    """Wishes: these attention sublayers gone, the other ones whole, one ratio for all MLPs."""
    space, shape = problem.space, problem.shape
    gone = len(dropped) * space.weights[Site(0, Kind.ATTENTION)]
    rest = problem.ratio * shape.decoder_parameters - gone
    share = rest / (shape.layers * space.weights[Site(0, Kind.MLP)])
    return {
        site: share if site.kind is Kind.MLP else float(site.layer in dropped)
        for site in problem.space.limits
    }


def paper(
    problem: Problem,
    count: EvaluationCounter,
    features: Features,
    train: TrainPredictor,
    narrow: Narrowing,
    forecasts: int = 10_000,
    finalists: int = 18,
) -> Architecture:
    """The paper to the letter (arXiv 2309.09507): pairs, gradient-boosted trees on ratios, finalists.

    Measures the `bundled` and `free` pairs of the sample section, fits trees on 7 of 10 of them,
    without any law, to the perplexity of each text; narrows the sites by the trees' importances;
    forecasts random architectures of the budget in the narrowed space, and measures the best.
    """
    pairs = [d.architecture for d in designs.paper(problem.shape, problem.sample)]
    count(pairs)
    rng = random.Random(problem.seed)
    seen = rng.sample(pairs, round(0.7 * len(pairs)))
    ratios = [n for n in features.names if n.startswith("ratio.") and n.count(".") == 2]
    columns = [features.names.index(name) for name in ratios]
    matrix = features.matrix(seen)[:, columns]
    section = train.model_copy(update={"model": "xgboost", "seed": problem.seed})
    models = {
        target: TargetModel.fit(matrix, np.exp([count.known[a][target] for a in seen]), 0, section)
        for target in problem.weights
    }
    gains = np.mean([model.gains(matrix) for model in models.values()], axis=0)
    importance = {str(features.sites_of(n)[0]): float(g) for n, g in zip(ratios, gains, strict=True)}
    prunable = [site for site in problem.shape.sites() if site in _cut(problem, pairs)]
    sites = narrowing.narrow(problem.shape, prunable, importance, narrow)
    space = narrowing.space_of(problem.shape, problem.sample.mlp_granularity, sites)
    made = {problem.meet(_drawn(space, rng), space): None for _ in range(forecasts)}
    unseen = [a for a in made if a not in count.known]
    rows = features.matrix(unseen)[:, columns]
    forecast = {t: np.log(np.maximum(model.forecast(rows), 1.0)) for t, model in models.items()}
    scores = [objective_of({t: f[i] for t, f in forecast.items()}, problem.weights) for i in range(len(rows))]
    chosen = [unseen[i] for i in np.argsort(scores, kind="stable")[:finalists]]
    count(chosen)
    return count.best(chosen)


def _cut(problem: Problem, pairs: Sequence[Architecture]) -> set[Site]:
    """The sites that some pair cuts."""
    dense = problem.shape.widest
    return {
        site
        for site in problem.shape.sites()
        if any(a.widths[site.layer].of(site.kind) != dense.of(site.kind) for a in pairs)
    }


def _drawn(space: Space, rng: random.Random) -> dict[Site, float]:
    """A ratio for every site, drawn from its allowed widths."""
    drawn: dict[Site, Option] = {site: rng.choice(widths) for site, widths in space.allowed.items()}
    return {site: option.ratio for site, option in drawn.items()}
