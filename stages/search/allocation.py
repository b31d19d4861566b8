"""The cheapest cuts by damage curves alone: where the search starts, and a method by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from stages.architecture import Site
from stages.sample.space import Space

Point = tuple[float, float]
Damage = Callable[[Site, float], float]
"""A function from a site and its ratio to damage, in nats a token."""


class Allocation:
    """Shares an overall ratio out among sites so that damages add up to least.

    A site moves along the lower convex hull of its allowed widths, so that the cheapest next cut,
    damage a parameter, is always the next step of some site.
    """

    def __init__(self, space: Space, damage: Damage) -> None:
        self._space = space
        self._steps = {  # of each site: damage a parameter, from ratio, to ratio
            site: [
                ((right - left) / (b - a) / space.weights[site], a, b)
                for (a, left), (b, right) in pairwise(
                    _hull([(o.ratio, damage(site, o.ratio)) for o in widths])
                )
            ]
            for site, widths in space.allowed.items()
        }

    def cheapest(self, overall_ratio: float, prices: Mapping[Site, float] | None = None) -> dict[Site, float]:
        """Each site's ratio, to be projected. Where the space ends before the overall ratio, its end.

        `prices`, if given, are what each site's damage is multiplied by.
        """
        space, prices = self._space, prices or {}
        wishes = {site: widths[0].ratio for site, widths in space.allowed.items()}
        left_over = overall_ratio * space.shape.decoder_parameters
        left_over -= sum(ratio * space.weights[site] for site, ratio in wishes.items())
        steps = [
            (cost * prices.get(site, 1.0), site, a, b)
            for site, own in self._steps.items()
            for cost, a, b in own
        ]
        for _, site, a, b in sorted(steps):
            if left_over <= 0:
                break
            removed = (b - a) * space.weights[site]
            wishes[site] = a + min(1.0, left_over / removed) * (b - a)
            left_over -= removed
        return wishes


def cheapest(space: Space, damage: Damage, overall_ratio: float) -> dict[Site, float]:
    """Each site's ratio such that damages add up to least at an overall ratio (`Allocation`)."""
    return Allocation(space, damage).cheapest(overall_ratio)


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
