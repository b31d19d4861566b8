"""The designs: which architectures are measured to learn from, and the baselines."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from stages.architecture import Architecture, Kind, ModelShape, Site
from stages.config.budget import Budget
from stages.config.params import ModelSection, Sample
from stages.files import InputError, read_document, write_json
from stages.sample.latency import LatencyTable
from stages.sample.limits import Limit, Limited
from stages.sample.source import read_shape
from stages.sample.space import Interval, Space, bundles, prunable_sites

SCHEMA, VERSION = "prunecast.architectures", 1
DENSE, UNIFORM, SIMPLE = "dense", "uniform", "simple"
BASELINES = (DENSE, UNIFORM, SIMPLE)
SINGLE_SITE = "single-site"
FEWEST_PAIRS = 2
"""Held out, and left to train on."""
_STRAYS = (0.3, 0.6, 0.9)  # how far, from end to end, the sites of a spread architecture lie apart


@dataclass(frozen=True)
class Designed:
    """An architecture and the design that it comes from."""

    architecture: Architecture
    design: str


def paper(shape: ModelShape, sample: Sample, taken: Iterable[Architecture] = ()) -> list[Designed]:
    """The paper's design (arXiv 2309.09507, section 3.2), adapted to the model's depth.

    Every site draws its ratio from the grid; in the bundled part `bundle` neighbouring layers
    share the draw of each kind, in the free part every site draws for itself. A ratio becomes
    the nearest width. Seeded; no architecture comes twice, nor one that is `taken` by a baseline.

    Raises:
        InputError: the space has fewer distinct architectures than are asked for.
    """
    sites = prunable_sites(shape, sample.first_layers_kept, sample.last_layers_kept)
    space = Space(shape, sample.mlp_granularity, {})
    rng = random.Random(sample.seed)

    def draw(groups: list[list[Site]]) -> Architecture:
        ratios: dict[Site, float] = {}
        for group in groups:
            ratios |= dict.fromkeys(group, rng.choice(sample.ratios))
        return space.from_ratios(ratios)

    seen = set(taken)
    bundled = _distinct(seen, lambda: draw(bundles(sites, sample.bundle)), sample.bundled, "bundled")
    free = _distinct(seen, lambda: draw([[site] for site in sites]), sample.free, "free")
    return bundled + free


def single_site(shape: ModelShape, sample: Sample, taken: Iterable[Architecture] = ()) -> list[Designed]:
    """Every site cut alone, at each of `single_site_ratios`: its own damage curve.

    No layer is exempt: what a cut there costs is just what is asked. Two ratios that become one
    width are one architecture.
    """
    space = Space(shape, sample.mlp_granularity, {})
    alone = (
        space.from_ratios({site: ratio}) for site in shape.sites() for ratio in sample.single_site_ratios
    )
    new = dict.fromkeys(a for a in alone if a not in set(taken) | {shape.dense()})
    return [Designed(architecture, SINGLE_SITE) for architecture in new]


def spread(shape: ModelShape, sample: Sample, taken: Iterable[Architecture] = ()) -> list[Designed]:
    """Architectures from mild to strong, evenly over `spread_overall_ratios`, their sites unlike each other.

    Each site's ratio strays from the overall one by a Latin hypercube (McKay et al. 1979), one
    dimension a site, so that every site takes every strength as often as any other; how far the
    sites stray alternates, so that even and uneven architectures are both among them. Widths are the
    nearest ones: no budget is to be met. No site is cut beyond `spread_site_ratios`.

    Raises:
        InputError: none of the overall ratios can be reached on the prunable sites.
    """
    space = spread_space(shape, sample)
    rng = random.Random(sample.seed)
    columns = {site: rng.sample(range(sample.spread), sample.spread) for site in space.limits}
    seen = set(taken)
    made = []
    for index, target in enumerate(spread_targets(sample, space)):
        reach = _STRAYS[index % len(_STRAYS)]
        wishes = {s: target + reach * ((c[index] + 0.5) / sample.spread - 0.5) for s, c in columns.items()}
        architecture = space.near(wishes, target)
        if architecture not in seen:
            seen.add(architecture)
            made.append(Designed(architecture, "spread"))
    return made


def spread_space(shape: ModelShape, sample: Sample) -> Space:
    """The space of the spread design."""
    sites = prunable_sites(shape, sample.first_layers_kept, sample.last_layers_kept)
    return Space(shape, sample.mlp_granularity, dict.fromkeys(sites, _interval(sample.spread_site_ratios)))


def spread_targets(sample: Sample, space: Space) -> list[float]:
    """The overall ratios that the spread design's architectures are to have, rising.

    Where the space ends before the last of them, they end with it: 28 layers reach less than 30.
    """
    low, high = sample.spread_overall_ratios
    least, most = space.reachable()
    targets = _evenly(low, high, sample.spread)
    if targets and not least <= targets[0] <= targets[-1] <= most:
        targets = _evenly(max(low, least), min(high, most), sample.spread)
    return targets


def _evenly(low: float, high: float, count: int) -> list[float]:
    """The middles of `count` equal parts of an interval."""
    return [low + (high - low) * (index + 0.5) / count for index in range(count)]


def all_designs(
    shape: ModelShape, sample: Sample, budget: Budget, limits: Sequence[Limit] = ()
) -> list[Designed]:
    """The baselines, then each design that params ask for; no architecture of theirs comes twice."""
    made = baselines(shape, sample, budget, limits)
    for design in (paper, single_site, spread):
        made += design(shape, sample, [d.architecture for d in made])
    return made


def _distinct(
    seen: set[Architecture], draw: Callable[[], Architecture], count: int, design: str
) -> list[Designed]:
    made: list[Designed] = []
    attempts = 0
    while len(made) < count:
        attempts += 1
        if attempts > 100 * (count + 1):
            raise InputError(
                f"sample.{design} asks for {count} distinct architectures, but {attempts - 1} draws "
                f"found only {len(made)}; lower it, or give sample.ratios more values"
            )
        architecture = draw()
        if architecture not in seen:
            seen.add(architecture)
            made.append(Designed(architecture, design))
    return made


def uniform(shape: ModelShape, sample: Sample, budget: Budget, limits: Sequence[Limit] = ()) -> Architecture:
    """The uniform baseline: attention and MLP alike at one ratio in every prunable layer.

    LLM-Pruner's default. It takes no less than the budget allows.
    """
    sites = prunable_sites(shape, sample.first_layers_kept, sample.last_layers_kept)
    return _even(shape, sample, sites, budget, limits)


def simple(shape: ModelShape, sample: Sample, budget: Budget, limits: Sequence[Limit] = ()) -> Architecture:
    """The simple baseline: MLPs only, one ratio for all layers, none exempt.

    It takes no less than the budget allows.
    """
    return _even(shape, sample, _mlps(shape), budget, limits)


def simple_is_possible(
    shape: ModelShape, sample: Sample, budget: Budget, limits: Sequence[Limit] = ()
) -> bool:
    """Whether the budget can be met by cutting MLPs alone: attention may be most of a model."""
    space = Space(shape, sample.mlp_granularity, dict.fromkeys(_mlps(shape), (0.0, 1.0)))
    if limits:
        return not Limited(space, limits, budget.tolerance).exceeded
    assert budget.overall_ratio is not None  # or there were limits
    return budget.overall_ratio <= space.reachable()[1]


def _mlps(shape: ModelShape) -> list[Site]:
    return [site for site in shape.sites() if site.kind is Kind.MLP]


def _even(
    shape: ModelShape, sample: Sample, sites: Sequence[Site], budget: Budget, limits: Sequence[Limit]
) -> Architecture:
    space = Space(shape, sample.mlp_granularity, dict.fromkeys(sites, (0.0, 1.0)))
    if limits:
        even = dict.fromkeys(sites, 0.0)
        return Limited(space, limits, budget.tolerance).project(even, at_least=False)
    assert budget.overall_ratio is not None  # or there were limits
    even = dict.fromkeys(sites, budget.overall_ratio)
    return space.project(even, budget.overall_ratio, budget.tolerance, at_least=False)


def baselines(
    shape: ModelShape, sample: Sample, budget: Budget, limits: Sequence[Limit] = ()
) -> list[Designed]:
    """Dense, uniform and, where it is possible, simple, in the order of `BASELINES`."""
    made = [Designed(shape.dense(), DENSE), Designed(uniform(shape, sample, budget, limits), UNIFORM)]
    if simple_is_possible(shape, sample, budget, limits):
        made.append(Designed(simple(shape, sample, budget, limits), SIMPLE))
    return made


def baselines_of(designed: Iterable[Designed]) -> list[Designed]:
    """The baselines among what was designed, in the order of `BASELINES`."""
    return [d for d in designed if d.design in BASELINES]


def left_to_prune(shape: ModelShape, sample: Sample) -> str:
    """The prunable layers in words, with the keys that leave them."""
    left = shape.layers - sample.first_layers_kept - sample.last_layers_kept
    return (
        f"the {left} of {shape.layers} layers that sample.first_layers_kept and sample.last_layers_kept "
        "leave to prune"
    )


def check_budget(shape: ModelShape, sample: Sample, budget: Budget, limits: Sequence[Limit] = ()) -> None:
    """Raise InputError unless the prunable sites, from dense to dropped, reach the budget."""
    sites = prunable_sites(shape, sample.first_layers_kept, sample.last_layers_kept)
    space = Space(shape, sample.mlp_granularity, dict.fromkeys(sites, (0.0, 1.0)))
    low, high = space.reachable()
    reach = left_to_prune(shape, sample)
    if budget.overall_ratio is not None and not low <= budget.overall_ratio <= high:
        raise InputError(
            f"params.yaml: budget.overall_ratio is {budget.overall_ratio:g}; expected a number from "
            f"{low:.4f} to {high:.4f}, which is what {reach} reach from dense to dropped. "
            "Change the budget, or keep fewer layers"
        )
    if limits:
        Limited(space, limits, budget.tolerance).check(reach)


def extrapolation(
    shape: ModelShape, designed: Sequence[Designed], budget: Budget, limits: Sequence[Limit] = ()
) -> str | None:
    """A sentence for the case that the sampled architectures do not surround the budget, else None.

    A predictor that learns from them has to extrapolate there. The baselines do not count: two of them
    are made to lie on the budget.
    """
    sampled = [d.architecture for d in designed if d.design not in BASELINES]
    if limits:
        allowed = [all(limit.allows(a) for limit in limits) for a in sampled]
        if any(allowed) and not all(allowed):
            return None
        found = "all are within its limits" if any(allowed) else "none is within its limits"
    else:
        assert budget.overall_ratio is not None  # or there were limits
        ratios = [a.overall_ratio(shape) for a in sampled]
        if ratios and min(ratios) <= budget.overall_ratio <= max(ratios):
            return None
        found = f"their overall ratios go from {min(ratios):.3f} to {max(ratios):.3f}" if ratios else "none"
    return (
        f"the sampled architectures do not surround the budget ({found}), so forecasts there will "
        "extrapolate; sample milder or stronger architectures for better ones"
    )


def held_out_of(pairs: int, held_out: float) -> tuple[int, int]:
    """The numbers of pairs held out and trained on, of so many that are not of single sites."""
    count = round(held_out * pairs)
    return count, pairs - count


def _interval(ends: Sequence[float]) -> Interval:
    low, high = ends
    return low, high


def write(path: Path, shape: ModelShape, designed: list[Designed], table: LatencyTable | None = None) -> None:
    """Write the architectures: id, design, overall ratio and widths, one a line; and a latency table."""
    rows = [
        {
            "id": d.architecture.id,
            "design": d.design,
            "overall_ratio": round(d.architecture.overall_ratio(shape), 6),
            "widths": d.architecture.to_json(),
        }
        for d in designed
    ]
    latency = {} if table is None else {"latency": table.to_json()}
    write_json(path, SCHEMA, VERSION, {"shape": shape.to_json(), "architectures": rows, **latency})


def read(path: Path) -> tuple[ModelShape, list[Designed]]:
    """Read what `write` wrote.

    Raises:
        InputError: the file is of another schema, or an architecture does not fit its id or shape.
    """

    def make(document: dict[str, Any]) -> tuple[ModelShape, list[Designed]]:
        shape = ModelShape(**document["shape"])
        return shape, [_designed(row, shape) for row in document["architectures"]]

    return read_document(path, SCHEMA, VERSION, "sample", make)


def check_model(path: Path, shape: ModelShape, model: ModelSection) -> None:
    """Raise InputError if the architectures at `path`, drawn for a shape, are not of the model of today."""
    found = read_shape(model)
    odd = [f.name for f in fields(shape) if getattr(shape, f.name) != getattr(found, f.name)]
    if odd:
        then, now = ([f"{name} {getattr(s, name)}" for name in odd] for s in (shape, found))
        raise InputError(
            f"{path} was drawn for a model with {', '.join(then)}, and model.source {model.source!r} now has "
            f"{', '.join(now)}: it was replaced since. Run `dvc repro -f sample`, then `dvc repro`"
        )


def read_latency(path: Path) -> LatencyTable | None:
    """The latency table that `write` wrote, if there was one.

    Raises:
        InputError: the file is of another schema, or the table is damaged.
    """

    def make(document: dict[str, Any]) -> LatencyTable | None:
        return LatencyTable.from_json(document["latency"]) if "latency" in document else None

    return read_document(path, SCHEMA, VERSION, "sample", make)


def _designed(row: dict[str, Any], shape: ModelShape) -> Designed:
    architecture = Architecture.from_json(row["widths"])
    if architecture.id != row["id"]:
        raise ValueError(f"architecture {row['id']} has widths whose id is {architecture.id}")
    architecture.check(shape)
    return Designed(architecture, row["design"])
