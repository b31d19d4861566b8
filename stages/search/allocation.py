"""The cheapest cuts by damage curves alone: where the search starts, and a method by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from stages.architecture import Site
from stages.sample.space import Space

Point = tuple[float, float]


def cheapest(space: Space, damage: Callable[[Site, float], float], overall_ratio: float) -> dict[Site, float]:
    """Each site's ratio such that damages add up to least at an overall ratio; to be projected.

    `damage` is of a site at a ratio. A site moves along the lower convex hull of its allowed widths,
    so that the cheapest next cut, damage a parameter, is always the next step of some site. Where the
    space ends before the overall ratio, its end.
    """
    steps: list[tuple[float, Site, float, float]] = []  # damage a parameter, site, from ratio, to ratio
    wishes = {}
    for site, widths in space.allowed.items():
        wishes[site] = widths[0].ratio
        points = [(option.ratio, damage(site, option.ratio)) for option in widths]
        for (a, left), (b, right) in pairwise(_hull(points)):
            steps.append(((right - left) / (b - a) / space.weight(site.kind), site, a, b))
    left_over = overall_ratio * space.shape.decoder_parameters
    left_over -= sum(ratio * space.weight(site.kind) for site, ratio in wishes.items())
    for _, site, a, b in sorted(steps):
        if left_over <= 0:
            break
        removed = (b - a) * space.weight(site.kind)
        wishes[site] = a + min(1.0, left_over / removed) * (b - a)
        left_over -= removed
    return wishes


def _hull(points: Sequence[Point]) -> list[Point]:
    """The lower convex hull of points of rising x (Andrew 1979)."""
    hull: list[Point] = []
    for x, y in points:
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (x - hull[-2][0]) >= (y - hull[-2][1]) * (
            hull[-1][0] - hull[-2][0]
        ):
            hull.pop()
        hull.append((x, y))
    return hull
