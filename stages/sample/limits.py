"""Budgets of bytes and milliseconds: linear costs, and how to meet several limits at once.

Every cost is a constant and an entry for each site's width, so that what an architecture takes is a
sum. Of a site's widths only those are offered that save something in what is limited and cost more in
nothing: then the smallest architecture of a space is smallest in every cost, and limits that it meets
are met from any wish.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from stages.architecture import Architecture, Kind, LayerWidth, ModelShape, Site, Width
from stages.config.budget import BYTES, Budget
from stages.files import InputError
from stages.sample.latency import LatencyTable
from stages.sample.space import Option, Space

_EPSILON = 1e-9  # relative; costs are sums of floats

Costs = tuple[float, ...]


@dataclass(frozen=True)
class Limit:
    """The most that an architecture may take of one thing: `constant` and the sites' costs together."""

    name: str
    """The key of the budget that states it."""
    most: float
    constant: float
    cost: Callable[[Kind, Width], float]

    def of(self, architecture: Architecture) -> float:
        """What an architecture takes."""
        return self.constant + sum(
            self.cost(kind, width.of(kind))
            for width in architecture.widths
            for kind in Kind
            if width.keeps(kind)
        )

    def allows(self, architecture: Architecture) -> bool:
        """Whether an architecture takes no more than `most`."""
        return _fits([self.of(architecture)], [self.most])


def limits_of(shape: ModelShape, budget: Budget, table: LatencyTable | None) -> list[Limit]:
    """The budget's limits, the overall ratio among them; none where it states a ratio alone.

    Raises:
        ValueError: milliseconds are limited, and there is no table.
    """
    if not budget.limited:
        return []
    if budget.timed and table is None:
        raise ValueError("the budget limits milliseconds, and no latency table is given")

    def parameters(kind: Kind, width: Width) -> int:
        full = (*width, 0) if kind is Kind.ATTENTION else (0, 0, *width)
        return shape.site_parameters(kind, LayerWidth._make(full))

    found = []
    if budget.overall_ratio is not None:
        most = (1 - budget.overall_ratio) * shape.decoder_parameters
        found.append(Limit("overall_ratio", most, 0, parameters))
    if budget.size_bytes is not None:
        each = BYTES[budget.dtype]
        rest = each * shape.outside_parameters
        found.append(Limit("size_bytes", budget.size_bytes, rest, lambda k, w: each * parameters(k, w)))
    if table is not None:
        for name, most_ms in (("prefill_ms", budget.prefill_ms), ("decode_ms", budget.decode_ms)):
            if most_ms is not None:
                found.append(Limit(name, most_ms, table.constant[name], table.costs(name)))
    return found


class _Rung(NamedTuple):
    """A width of a site, and what it takes of each limit."""

    option: Option
    costs: Costs


@dataclass(frozen=True)
class Limited:
    """A space and the limits that its architectures must meet."""

    space: Space
    limits: Sequence[Limit]
    tolerance: float
    """How much of the tightest limit, as a fraction, may stay unused."""

    @cached_property
    def _ladders(self) -> dict[Site, list[_Rung]]:
        """Each site's widths by rising ratio: those that save and in no cost exceed the one before."""
        ladders: dict[tuple[Option, ...], list[_Rung]] = {}
        result = {}
        for site, widths in self.space.allowed.items():
            key = tuple(widths)
            if key not in ladders:
                rungs: list[_Rung] = []
                for option in widths:
                    there = all(option.width)
                    costs = tuple(li.cost(site.kind, option.width) if there else 0.0 for li in self.limits)
                    if not rungs or (_fits(costs, rungs[-1].costs) and costs != rungs[-1].costs):
                        rungs.append(_Rung(option, costs))
                ladders[key] = rungs
            result[site] = ladders[key]
        return result

    @cached_property
    def _fixed(self) -> Costs:
        """What does not depend on the widths chosen: constants, and the sites that stay dense."""
        shape = self.space.shape
        rest = [site for site in shape.sites() if site not in self._ladders]
        return tuple(
            limit.constant + sum(limit.cost(site.kind, shape.width(site)) for site in rest)
            for limit in self.limits
        )

    @property
    def _most(self) -> Costs:
        return tuple(limit.most for limit in self.limits)

    @cached_property
    def least(self) -> Costs:
        """What the smallest architecture of the space takes of each limit."""
        return self._used({site: len(rungs) - 1 for site, rungs in self._ladders.items()})

    @property
    def exceeded(self) -> list[Limit]:
        """The limits that no architecture of the space meets."""
        return [
            li for li, least in zip(self.limits, self.least, strict=True) if not _fits([least], [li.most])
        ]

    def check(self, what: str) -> None:
        """Raise InputError, naming what is reachable, unless the space meets every limit; `what` it is."""
        dense = self.space.shape.dense()
        for limit in self.exceeded:
            least = self.least[self.limits.index(limit)]
            raise InputError(
                f"params.yaml: budget.{limit.name} is {limit.most:g}; the smallest architecture of "
                f"{what} takes {_up(least)}, the dense model {_up(limit.of(dense))}. Raise the limit, "
                "or allow stronger cuts"
            )
        if all(limit.allows(dense) for limit in self.limits):
            takes = ", ".join(f"{limit.name} {_up(limit.of(dense))}" for limit in self.limits)
            raise InputError(
                f"params.yaml: the dense model is within every limit of budget already: {takes}. "
                "Lower a limit"
            )

    def project(self, wishes: Mapping[Site, float], at_least: bool = True) -> Architecture:
        """The architecture near the wished ratios that meets every limit and leaves little unused.

        All wishes are shifted by the least amount that meets the limits once widths are rounded; what
        rounding cut too much is given back in the single steps that stray least from the shifted
        wishes, until the tightest limit is used but for `tolerance`, or no step fits. Unless
        `at_least`, one more step is given back, so that one limit is just exceeded: contenders are held
        below the limits and baselines above, so that no comparison is won with size or time.

        Raises:
            InputError: no architecture of the space meets the limits.
        """
        low, high = -2.0, 2.0  # every site at its widest, at its narrowest
        if not _fits(self._used(self._places(wishes, high)), self._most):
            self.check("this space")
        for _ in range(40):
            shift = (low + high) / 2
            if _fits(self._used(self._places(wishes, shift)), self._most):
                high = shift
            else:
                low = shift
        place = self._places(wishes, high)
        wanted = {s: self._clip(s, wishes[s] + high) for s in place}
        while all(u < m * (1 - self.tolerance) for u, m in zip(self._used(place), self._most, strict=True)):
            best = min(self._widenings(place, wanted, fitting=True), default=None)
            if best is None:
                break
            place[best[1]] -= 1
        while not at_least and _fits(self._used(place), self._most):
            beyond = min(self._widenings(place, wanted, fitting=False), default=None)
            best = beyond or min(self._widenings(place, wanted, fitting=True), default=None)
            if best is None:
                break
            place[best[1]] -= 1
        return self.space.architecture({s: self._ladders[s][i].option for s, i in place.items()})

    def _clip(self, site: Site, ratio: float) -> float:
        rungs = self._ladders[site]
        return min(max(ratio, rungs[0].option.ratio), rungs[-1].option.ratio)

    def _places(self, wishes: Mapping[Site, float], shift: float) -> dict[Site, int]:
        places = {}
        for site, rungs in self._ladders.items():
            wanted = self._clip(site, wishes[site] + shift)
            places[site] = min(
                range(len(rungs)), key=lambda i, r=rungs, w=wanted: abs(r[i].option.ratio - w)  # type: ignore[misc]
            )  # fmt: skip
        return places

    def _used(self, place: Mapping[Site, int]) -> Costs:
        rows = [self._ladders[site][index].costs for site, index in place.items()]
        return tuple(f + sum(r[i] for r in rows) for i, f in enumerate(self._fixed))

    def _widenings(
        self, place: Mapping[Site, int], wanted: Mapping[Site, float], fitting: bool
    ) -> list[tuple[float, Site]]:
        """The one-width steps back that meet the limits, each with how far it strays from the wish.

        Or those that do not, each with the share of the worst limit that it takes.
        """
        used, found = self._used(place), []
        for site, index in place.items():
            if index == 0:
                continue
            now, wider = self._ladders[site][index], self._ladders[site][index - 1]
            then = [u - a + b for u, a, b in zip(used, now.costs, wider.costs, strict=True)]
            if _fits(then, self._most) == fitting:
                stray = wanted[site] - wider.option.ratio
                found.append(
                    (stray if fitting else max(t / m for t, m in zip(then, self._most, strict=True)), site)
                )
        return found


def _fits(costs: Sequence[float], most: Sequence[float]) -> bool:
    return all(c <= m + _EPSILON * abs(m) for c, m in zip(costs, most, strict=True))


def _up(value: float) -> str:
    """Four digits for a person, never less than the value, so that it can be asked for."""
    digit = 10.0 ** (math.floor(math.log10(value)) - 3)
    return f"{math.ceil(value / digit) * digit:,.10g}"
