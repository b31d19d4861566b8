"""Whether what params ask for can be: every question that they and the model's configuration answer alone.

`OF_PARAMS`, `OF_BUDGET` and `OF_DESIGNS` list the questions; each finds what can never be met, and what may
not be. They are asked by `sample`, in a second and without torch, before anything is paid for, and by
`stages.plan`.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product

from stages.architecture import Kind, ModelShape, Site
from stages.config.params import Measurement, Params
from stages.families import Description, llama_cpp
from stages.files import InputError
from stages.sample import designs, timing
from stages.sample.designs import SINGLE_SITE, Designed
from stages.sample.latency import LatencyTable, table_of
from stages.sample.limits import Limit, Limited, limits_of
from stages.sample.narrowings import narrowings
from stages.sample.space import Space, options

_WISHES = 48  # random ones that a space is tried with
_COUNTED = 20_000  # architectures of a space that are counted one by one, at most


@dataclass(frozen=True)
class Never:
    """What cannot be met, and what to change."""

    words: str

    def __str__(self) -> str:
        return f"params.yaml: {self.words}"


@dataclass(frozen=True)
class Note:
    """What may not be met, or what is done in its place."""

    words: str

    def __str__(self) -> str:
        return f"note: {self.words}"


Finding = Never | Note


@dataclass(frozen=True)
class Request:
    """What is asked for, and of which model."""

    params: Params
    model: Description

    @property
    def shape(self) -> ModelShape:
        return self.model.shape

    @property
    def ratios(self) -> list[tuple[str, float]]:
        """The overall ratios that are searched for, each with the key that asks for it."""
        budget, front = self.params.budget.overall_ratio, self.params.search.front
        asked = [] if budget is None else [("budget.overall_ratio", budget)]
        return asked + [("search.front", ratio) for ratio in front]

    @cached_property
    def table(self) -> LatencyTable | None:
        """What widths take, where milliseconds are limited: measured here, if it was not before."""
        budget, granularity = self.params.budget, self.params.sample.mlp_granularity
        return table_of(self.shape, budget, granularity) if budget.timed else None

    @cached_property
    def limits(self) -> list[Limit]:
        return limits_of(self.shape, self.params.budget, self.table)

    @cached_property
    def designed(self) -> list[Designed]:
        """The architectures that are drawn for it.

        Raises:
            InputError: there are not as many as are asked for, or none within the budget.
        """
        return designs.all_designs(self.shape, self.params.sample, self.params.budget, self.limits)

    @cached_property
    def sites(self) -> list[Site]:
        """The sites that the search may cut: those that have a damage curve, or that a pair cuts."""
        if self.params.evaluate.curvature_tokens:
            return list(self.shape.sites())
        shape, made = self.shape, [d.architecture.widths for d in self.designed]
        return [s for s in shape.sites() if any(w[s.layer].of(s.kind) != shape.width(s) for w in made)]

    @cached_property
    def narrowed(self) -> list[Space]:
        """The spaces that narrowing may leave, the extreme ones."""
        section = self.params.search.narrowing
        return list(narrowings(self.shape, self.params.sample.mlp_granularity, self.sites, section))


Check = Callable[[Request], Iterator[Finding]]


def check(request: Request) -> list[str]:
    """Ask every question; a sentence for each thing that may not be met.

    Raises:
        InputError: something can never be met; a line for each, and for each that may not.
    """
    found: list[Finding] = []
    for questions in (OF_PARAMS, OF_BUDGET, OF_DESIGNS):
        found += [finding for question in questions for finding in question(request)]
        if any(isinstance(finding, Never) for finding in found):
            found.sort(key=lambda finding: isinstance(finding, Note))
            raise InputError("\n".join(map(str, found)))
    return [str(finding) for finding in found]


def the_layers_and_mlps_alone_reach_the_budget(request: Request) -> Iterator[Finding]:
    """Whether the prunable layers reach the budget, and, for the baseline, the MLPs of all."""
    params = request.params
    designs.check_budget(request.shape, params.sample, params.budget, request.limits)
    if not designs.simple_is_possible(request.shape, params.sample, params.budget, request.limits):
        yield Note(
            "budget asks for more than all MLPs of the model hold, so there will be no baseline "
            f"{designs.SIMPLE!r}, which cuts nothing else"
        )


def the_spread_is_reached(request: Request) -> Iterator[Finding]:
    """Whether the prunable layers hold the overall ratios of the spread design."""
    sample = request.params.sample
    space = designs.spread_space(request.shape, sample)
    (low, high), asked = space.reachable(), sample.spread_overall_ratios
    targets = designs.spread_targets(sample, space)
    told = (
        f"sample.spread_overall_ratios is {asked}; with sample.spread_site_ratios "
        f"{sample.spread_site_ratios}, {designs.left_to_prune(request.shape, sample)} reach {low:.4f} to "
        f"{high:.4f}"
    )
    if targets and not low <= targets[0] <= targets[-1] <= high:
        yield Never(f"{told}. Ask for ratios between, or widen spread_site_ratios")
    elif targets and targets[-1] < asked[1] - (asked[1] - asked[0]) / len(targets):
        yield Note(f"{told}, and what is asked for beyond is left out")


def a_round_has_trials_enough(request: Request) -> Iterator[Finding]:
    """Whether a round forecasts as many architectures as it is to measure."""
    section = request.params.search
    if section.trials < section.per_round:
        yield Never(
            f"search.trials is {section.trials}, and search.per_round {section.per_round} are measured of "
            "them; expected at least as many trials"
        )


def the_narrowed_space_holds_the_ratios(request: Request) -> Iterator[Finding]:
    """Whether the overall ratios lie in what narrowing leaves, however it ranks the sites."""
    lows, highs = zip(*(space.reachable() for space in request.narrowed), strict=True)
    remedy = "Change it, or search.narrowing's fractions and ratios"
    for key, ratio in request.ratios:
        if not min(lows) <= ratio <= max(highs):
            yield Never(
                f"{key} is {ratio:g}; the narrowed space reaches {min(lows):.4f} to {max(highs):.4f} at "
                f"most, whichever sites are sensitive. {remedy}"
            )
        elif not max(lows) <= ratio <= min(highs):
            yield Note(
                f"{key} is {ratio:g}, and which sites are sensitive decides whether the narrowed space "
                f"reaches it: {max(lows):.4f} to {min(highs):.4f} surely, else the search stops. {remedy}"
            )


def the_narrowed_space_meets_the_limits(request: Request) -> Iterator[Finding]:
    """Whether limits of bytes and milliseconds can be met in what narrowing leaves."""
    if not request.limits:
        return
    tolerance = request.params.budget.tolerance
    spaces = [Limited(space, request.limits, tolerance) for space in request.narrowed]
    for place, limit in enumerate(request.limits):
        if limit.name == "overall_ratio":
            continue
        failing = sum(limit in space.exceeded for space in spaces)
        least = min(space.least[place] for space in spaces)
        most = max(space.least[place] for space in spaces)
        remedy = "Raise it, or search.narrowing's ratios"
        if failing == len(spaces):
            yield Never(
                f"budget.{limit.name} is {limit.most:g}; the smallest architecture of the narrowed space "
                f"takes {least:.5g}, whichever sites are sensitive. {remedy}"
            )
        elif failing:
            yield Note(
                f"budget.{limit.name} is {limit.most:g}; the smallest architecture of the narrowed space "
                f"takes {least:.5g} to {most:.5g}: which sites are sensitive decides, and the search stops "
                f"where that is too much. {remedy}"
            )


def widths_are_fine_enough(request: Request) -> Iterator[Finding]:
    """Whether the search finds widths within the tolerance, whatever it wishes for.

    It does where no step of an MLP is more than the tolerance. Else random wishes are tried.
    """
    tolerance, granularity = request.params.budget.tolerance, request.params.sample.mlp_granularity
    shape = request.shape
    step = max(
        (b.ratio - a.ratio) * shape.dense_parameters(site) / shape.decoder_parameters
        for site in shape.sites()
        if site.kind is Kind.MLP
        for a, b in pairwise(options(shape, site, granularity))
    )
    if step <= tolerance:
        return
    for key, ratio in request.ratios:
        if request.limits and key == "budget.overall_ratio":
            continue  # limits are met from any wish
        spaces = [s for s in request.narrowed if s.reachable()[0] <= ratio <= s.reachable()[1]]
        missed = sum(
            not _meets(spaces[i % len(spaces)], ratio, tolerance, i) for i in range(_WISHES) if spaces
        )
        if missed:
            yield Never(
                f"budget.tolerance is {tolerance:g}, and a step of sample.mlp_granularity ({granularity} "
                f"channels) removes up to {step:.4f} of the decoder's parameters: from {missed} of {_WISHES} "
                f"random wishes no widths came within the tolerance of {key} {ratio:g}. Raise it to "
                f"{_rounded_up(step)}, or lower the granularity"
            )


def _rounded_up(value: float) -> str:
    """Two digits, never less than the value."""
    digit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.ceil(value / digit) * digit:.2g}"


def _meets(space: Space, ratio: float, tolerance: float, seed: int) -> bool:
    """Whether random wishes can be projected onto an overall ratio."""
    rng = random.Random(seed)
    wishes = {site: rng.uniform(*interval) for site, interval in space.limits.items()}
    try:
        space.project(wishes, ratio, tolerance, at_least=True)
    except InputError:
        return False
    return True


def architectures_suffice_for_the_rounds(request: Request) -> Iterator[Finding]:
    """Whether a small space holds as many architectures of the budget as are to be measured."""
    section, tolerance = request.params.search, request.params.budget.tolerance
    ratio = request.params.budget.overall_ratio
    if request.limits or ratio is None:
        return
    count, needed = _architectures(request.narrowed, ratio, tolerance), section.rounds * section.per_round
    if count is not None and count < needed:
        yield Never(
            f"search.rounds {section.rounds} of search.per_round {section.per_round} measure {needed} "
            f"architectures, and within budget.tolerance of the overall ratio {ratio:g} there are {count}. "
            "Lower them, or sample.mlp_granularity"
        )


def _architectures(spaces: Sequence[Space], ratio: float, tolerance: float) -> int | None:
    """How many architectures of any of the spaces meet an overall ratio; None if too many to count."""
    weights = {
        site: spaces[0].weights[site] / spaces[0].shape.decoder_parameters for site in spaces[0].limits
    }
    shares = [
        sorted({option.ratio * weight for space in spaces for option in space.allowed[site]})
        for site, weight in weights.items()
    ]
    if math.prod(map(len, shares)) > _COUNTED:
        return None
    return sum(ratio - 1e-9 <= math.fsum(row) <= ratio + tolerance + 1e-9 for row in product(*shares))


def pairs_suffice(request: Request) -> Iterator[Finding]:
    """Whether the pairs can be split, and into as many folds as are asked for."""
    section, folds = request.params.build_dataset, request.params.train_predictor.folds
    pairs = len({d.architecture for d in request.designed if d.design != SINGLE_SITE})
    held_out, trained = designs.held_out_of(pairs, section.held_out)
    if min(held_out, trained) < designs.FEWEST_PAIRS:
        yield Never(
            f"build_dataset.held_out is {section.held_out:g}, which of {pairs} pairs holds {held_out} out "
            f"and leaves {trained} to train on; expected at least {designs.FEWEST_PAIRS} each. Raise "
            "sample.spread, bundled or free, or change held_out"
        )
    elif folds > trained:
        yield Note(
            f"train_predictor.folds is {folds}, and {trained} pairs are trained on: each is a fold of its own"
        )


def finalists_are_measured(request: Request) -> Iterator[Finding]:
    """Whether as many architectures of the budget are measured as there are to be finalists."""
    section, budget = request.params.search, request.params.budget
    measured = section.rounds * section.per_round
    if request.limits:
        near = [d for d in request.designed if all(limit.allows(d.architecture) for limit in request.limits)]
    else:
        assert budget.overall_ratio is not None  # or there were limits
        ratios = [
            d.architecture.overall_ratio(request.shape) - budget.overall_ratio for d in request.designed
        ]
        near = [
            d
            for d, more in zip(request.designed, ratios, strict=True)
            if -1e-9 <= more <= budget.tolerance + 1e-9
        ]
    if section.finalists > measured + len(near):
        yield Note(
            f"search.finalists is {section.finalists}, and search.rounds and per_round measure {measured} "
            "architectures of the budget: there will be no more finalists"
        )


def windows_fit_the_context(request: Request) -> Iterator[Finding]:
    """Whether the model was made for sequences as long as it is to be calibrated and measured on."""
    params = request.params
    lengths = {"evaluate.calibration.sequence_length": params.evaluate.calibration.sequence_length}
    measurements: dict[str, Measurement] = {
        "evaluate": params.evaluate.measurement,
        "search": params.search.measurement,
        "export": params.export.measurement,
    }
    lengths |= {
        f"{name}.measurement.sequence_length": m.text.sequence_length for name, m in measurements.items()
    }
    if params.export.proof is not None:
        lengths["export.proof.prompt + continuation"] = (
            params.export.proof.prompt + params.export.proof.continuation
        )
    if params.budget.timed:
        latency = params.budget.latency
        lengths["budget.latency.prompt + continuation"] = latency.prompt + latency.continuation
    for key, length in lengths.items():
        if length > request.model.context_tokens:
            yield Never(
                f"{key} is {length} tokens; expected at most the {request.model.context_tokens} of the "
                "model's context"
            )


def llama_cpp_holds_the_model(request: Request) -> Iterator[Finding]:
    """Whether GGUF files can be written of the family, in the types that are asked for."""
    asked, shape = request.params.export.gguf, request.shape
    if not asked:
        return
    if reason := llama_cpp.refusal(shape, request.model.recipe):
        yield Never(
            f"export.gguf is {asked}, and no GGUF file can be written of {request.params.model.source}: "
            f"{reason}. Set export.gguf to []"
        )
    elif shape.hidden % llama_cpp.BLOCK and any(kind.startswith("Q") for kind in asked):
        yield Note(
            f"export.gguf is {asked}, and rows of the hidden size {shape.hidden} are no whole blocks of "
            f"{llama_cpp.BLOCK} weights: such matrices are stored in F16"
        )


def threads_are_there(request: Request) -> Iterator[Finding]:
    """Whether the machine has as many cores as threads are to be timed on."""
    params, cores = request.params, os.cpu_count() or 1
    threads = {"budget.latency.threads": params.budget.latency.threads if params.budget.timed else None}
    threads["export.proof.threads"] = None if params.export.proof is None else params.export.proof.threads
    for key, count in threads.items():
        if count is not None and count > cores:
            yield Note(f"{key} is {count}, and this machine has {cores}: they will wait for each other")


def the_gpu_is_there(request: Request) -> Iterator[Finding]:
    """Whether a GPU is there, where one is asked for: the one question for which torch is imported."""
    if request.params.evaluate.device == "cuda" and not timing.has_gpu():
        yield Never("evaluate.device is 'cuda', but PyTorch finds no GPU; use auto or cpu")


OF_PARAMS: Sequence[Check] = (
    windows_fit_the_context,
    a_round_has_trials_enough,
    llama_cpp_holds_the_model,
    threads_are_there,
    the_gpu_is_there,
)
"""Asked first: they need no table of latencies."""
OF_BUDGET: Sequence[Check] = (
    the_layers_and_mlps_alone_reach_the_budget,
    the_spread_is_reached,
)
OF_DESIGNS: Sequence[Check] = (
    the_narrowed_space_holds_the_ratios,
    the_narrowed_space_meets_the_limits,
    widths_are_fine_enough,
    architectures_suffice_for_the_rounds,
    pairs_suffice,
    finalists_are_measured,
)
