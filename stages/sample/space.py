"""The space of architectures: the widths that each site may take, and how to meet a budget in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby

from stages.architecture import Architecture, Kind, LayerWidth, ModelShape, Site, Width
from stages.files import InputError

Interval = tuple[float, float]
_EPSILON = 1e-9


@dataclass(frozen=True)
class Option:
    """One width of a site: what it keeps (one number a coordinate of the kind), and its exact ratio."""

    width: Width
    ratio: float


def options(shape: ModelShape, site: Site, granularity: int) -> Sequence[Option]:
    """Every width of a site, by rising ratio, from dense to dropped.

    MLP widths are the dense one and the multiples of `granularity` below it. Where two attention
    widths remove the same share, only the one that keeps more query heads is listed.
    """
    return _options(shape, shape.width(site), granularity)


@lru_cache(maxsize=4096)
def _options(shape: ModelShape, width: Width, granularity: int) -> Sequence[Option]:
    if len(width) == 2:
        widths = [(g, h) for g in range(1, width[0] + 1) for h in range(1, width[1] + 1)]
        widths.append((0, 0))
        dense = shape.attention_parameters(*width)
        made = [Option(w, 1 - shape.attention_parameters(*w) / dense) for w in widths]
        ordered = sorted(made, key=lambda o: (o.ratio, -o.width[0] * o.width[1]))
        return [next(alike) for _, alike in groupby(ordered, key=lambda o: o.ratio)]
    channels = {width[0], *range(0, width[0], granularity)}
    dense = shape.mlp_parameters(width[0])
    return [Option((c,), 1 - shape.mlp_parameters(c) / dense) for c in sorted(channels, reverse=True)]


@dataclass(frozen=True)
class Space:
    """Which sites may be pruned, and each one's interval of ratios. Sites without one stay dense."""

    shape: ModelShape
    granularity: int
    limits: Mapping[Site, Interval]

    @cached_property
    def allowed(self) -> dict[Site, list[Option]]:
        """Each limited site's widths by rising ratio: those inside its interval, or the nearest one."""
        result = {}
        for site, (low, high) in self.limits.items():
            widths = options(self.shape, site, self.granularity)
            inside = [o for o in widths if low - _EPSILON <= o.ratio <= high + _EPSILON]
            result[site] = inside or [self.nearest(site, (low + high) / 2)]
        return result

    def nearest(self, site: Site, ratio: float) -> Option:
        """The width whose ratio is nearest; ties keep more.

        >>> shape = ModelShape("llama", 2, 64, 2, 3, 8, 96, vocabulary=100, tied_embeddings=True)
        >>> space = Space(shape, 32, limits={})
        >>> found = space.nearest(Site(0, Kind.MLP), 0.4)
        >>> found.width, round(found.ratio, 3)
        ((64,), 0.332)
        """
        return min(options(self.shape, site, self.granularity), key=lambda o: abs(o.ratio - ratio))

    @cached_property
    def weights(self) -> dict[Site, int]:
        """Parameters of each dense site."""
        return {site: self.shape.dense_parameters(site) for site in self.shape.sites()}

    def reachable(self) -> Interval:
        """The smallest and largest overall ratio in the space."""
        total = self.shape.decoder_parameters
        ends = [
            sum(widths[i].ratio * self.weights[site] for site, widths in self.allowed.items()) / total
            for i in (0, -1)
        ]
        return ends[0], ends[1]

    def architecture(self, chosen: Mapping[Site, Option]) -> Architecture:
        """The architecture with these widths; sites that are not named stay dense."""
        widths = [list(width) for width in self.shape.widths]
        for site, option in chosen.items():
            if site.kind is Kind.ATTENTION:
                widths[site.layer][:2] = option.width
            else:
                widths[site.layer][2:] = option.width
        return Architecture(tuple(LayerWidth(*width) for width in widths))

    def from_ratios(self, ratios: Mapping[Site, float]) -> Architecture:
        """The architecture of nearest widths, whatever its overall ratio."""
        return self.architecture({site: self.nearest(site, ratio) for site, ratio in ratios.items()})

    def project(
        self, wishes: Mapping[Site, float], target: float, tolerance: float, at_least: bool
    ) -> Architecture:
        """The architecture of the budget that is near the wished ratios.

        All wishes are shifted by one amount and clipped to the sites' intervals until they meet
        `target`; widths are rounded, and the remainder is settled by the single steps that stray
        least from the shifted wishes. The overall ratio lies in [target, target + tolerance] if
        `at_least`, else in [target - tolerance, target]: contenders are held above and baselines
        below, so that no comparison is won with parameters.

        Raises:
            InputError: the space does not reach the budget; the message says what it reaches.
        """
        total = self.shape.decoder_parameters
        wanted = self._shifted(wishes, target)
        place = self._nearest_places(wanted)
        removed = sum(self.allowed[s][i].ratio * self.weights[s] for s, i in place.items()) / total
        bounds = (target, target + tolerance) if at_least else (target - tolerance, target)
        while removed < bounds[0] - _EPSILON or removed > bounds[1] + _EPSILON:
            step = 1 if removed < bounds[0] else -1
            best = self._best_step(place, wanted, step, bounds, removed)
            if best is None:
                exchange = self._best_exchange(place, wanted, bounds, removed)
                if exchange is not None:  # where no single step fits, one forward and one back may
                    place[exchange[0]] += 1
                    place[exchange[1]] -= 1
                    break
                raise InputError(
                    "params.yaml: no architecture of this space lies between the overall ratios "
                    f"{bounds[0]:.4f} and {bounds[1]:.4f}; raise budget.tolerance or lower "
                    "sample.mlp_granularity"
                )
            site, change = best
            place[site] += step
            removed += change
        return self.architecture({site: self.allowed[site][i] for site, i in place.items()})

    def near(self, wishes: Mapping[Site, float], target: float) -> Architecture:
        """The architecture of nearest widths to the wishes, shifted to `target` but not held to it.

        Raises:
            InputError: the space does not reach the target.
        """
        place = self._nearest_places(self._shifted(wishes, target))
        return self.architecture({site: self.allowed[site][i] for site, i in place.items()})

    def _nearest_places(self, wanted: Mapping[Site, float]) -> dict[Site, int]:
        return {
            site: min(range(len(widths)), key=lambda i, s=site, w=widths: abs(w[i].ratio - wanted[s]))  # type: ignore[misc]
            for site, widths in self.allowed.items()
        }

    def _best_step(
        self,
        place: Mapping[Site, int],
        wanted: Mapping[Site, float],
        step: int,
        bounds: Interval,
        removed: float,
    ) -> tuple[Site, float] | None:
        """The one-width step that strays least from the wish without jumping over the bounds."""
        best: tuple[float, Site, float] | None = None
        for site, index in place.items():
            widths = self.allowed[site]
            if not 0 <= index + step < len(widths):
                continue
            change = widths[index + step].ratio - widths[index].ratio
            change *= self.weights[site] / self.shape.decoder_parameters
            if (
                removed + change > bounds[1] + _EPSILON
                if step > 0
                else removed + change < bounds[0] - _EPSILON
            ):
                continue
            stray = (widths[index + step].ratio - wanted[site]) * step
            if best is None or stray < best[0] - _EPSILON:
                best = (stray, site, change)
        return None if best is None else best[1:]

    def _best_exchange(
        self, place: Mapping[Site, int], wanted: Mapping[Site, float], bounds: Interval, removed: float
    ) -> tuple[Site, Site] | None:
        """A site to cut one width further and one to widen, that together meet the bounds, straying least."""
        total = self.shape.decoder_parameters
        moves: dict[int, list[tuple[Site, float, float]]] = {1: [], -1: []}
        for site, index in place.items():
            widths = self.allowed[site]
            for step, found in moves.items():
                if 0 <= index + step < len(widths):
                    change = (widths[index + step].ratio - widths[index].ratio) * self.weights[site] / total
                    found.append((site, change, (widths[index + step].ratio - wanted[site]) * step))
        fitting = [
            (stray_cut + stray_widened, cut, widened)
            for cut, more, stray_cut in moves[1]
            for widened, less, stray_widened in moves[-1]
            if cut != widened and bounds[0] - _EPSILON <= removed + more + less <= bounds[1] + _EPSILON
        ]
        return min(fitting)[1:] if fitting else None

    def _shifted(self, wishes: Mapping[Site, float], target: float) -> dict[Site, float]:
        """Wishes + one shift, clipped to what each site reaches, with the overall ratio `target`."""
        reached = self.reachable()
        if not (reached[0] - _EPSILON <= target <= reached[1] + _EPSILON):
            raise InputError(
                f"the overall ratio {target:g} is asked for, but this space reaches only "
                f"{reached[0]:.4f} to {reached[1]:.4f}; change the ratio asked for or the ratios of the space"
            )
        sites = [
            (site, widths[0].ratio, widths[-1].ratio, self.weights[site])
            for site, widths in self.allowed.items()
        ]
        goal = target * self.shape.decoder_parameters
        low, high = -2.0, 2.0
        for _ in range(50):
            shift = (low + high) / 2
            removed = sum(w * min(max(wishes[s] + shift, a), b) for s, a, b, w in sites)
            low, high = (shift, high) if removed < goal else (low, shift)
        return {s: min(max(wishes[s] + high, a), b) for s, a, b, _ in sites}


def prunable_sites(shape: ModelShape, first_kept: int, last_kept: int) -> list[Site]:
    """The sites that the designs prune: all but those of the first and last layers.

    Raises:
        InputError: no layer is left.
    """
    if first_kept + last_kept >= shape.layers:
        raise InputError(
            f"sample.first_layers_kept + sample.last_layers_kept is {first_kept + last_kept}, but the model "
            f"has {shape.layers} layers; leave at least one to prune"
        )
    return [site for site in shape.sites() if first_kept <= site.layer < shape.layers - last_kept]


def bundles(sites: Iterable[Site], size: int) -> list[list[Site]]:
    """Groups of `size` neighbouring layers' sites of one kind, in the order of the layers."""
    groups: dict[tuple[int, Kind], list[Site]] = {}
    ordered = sorted(sites)
    first = ordered[0].layer if ordered else 0
    for site in ordered:
        groups.setdefault(((site.layer - first) // size, site.kind), []).append(site)
    return list(groups.values())
