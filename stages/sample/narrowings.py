"""What narrowing may leave of a space, before any pair says which sites are sensitive."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import permutations

from stages.architecture import ModelShape, Site
from stages.config.params import Narrowing
from stages.sample.space import Interval, Space


def narrowings(
    shape: ModelShape, granularity: int, sites: Iterable[Site], section: Narrowing
) -> Iterator[Space]:
    """Spaces among which are the least and the greatest of all that narrowing can leave.

    Which sites are sensitive, pairs will tell; how many, and how far each class may be cut, is known. Where
    layers are alike, what a space reaches depends on how many sites of each kind a class has, and linearly:
    extremes are where the classes, in one of their six orders, take first the one kind of site and then the
    other. Where they are not, each site weighs by itself, and the extremes are assignments.
    """
    ordered = sorted(sites, key=lambda site: (site.kind, site.layer))
    sensitive, insensitive = section.counts(len(ordered))
    classes = (
        (sensitive, section.sensitive_ratios),
        (insensitive, section.insensitive_ratios),
        (len(ordered) - sensitive - insensitive, section.other_ratios),
    )
    for order in permutations(classes):
        intervals = [(low, high) for count, (low, high) in order for _ in range(count)]
        yield Space(shape, granularity, dict(zip(ordered, intervals, strict=True)))
    if shape.unlike:
        yield from _extremes(shape, granularity, ordered, intervals)


def _extremes(
    shape: ModelShape, granularity: int, sites: Sequence[Site], intervals: Sequence[Interval]
) -> Iterator[Space]:
    """Spaces in which each of the intervals is one site's, with the least and greatest overall ratios."""
    from scipy.optimize import linear_sum_assignment

    of_interval = {i: Space(shape, granularity, dict.fromkeys(sites, i)) for i in {*intervals}}
    for end in (0, -1):
        removed = [
            [of_interval[i].allowed[site][end].ratio * shape.dense_parameters(site) for i in intervals]
            for site in sites
        ]
        for maximise in (False, True):
            _, chosen = linear_sum_assignment(removed, maximize=maximise)
            yield Space(shape, granularity, {s: intervals[i] for s, i in zip(sites, chosen, strict=True)})
