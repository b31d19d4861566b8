"""Why the winner gives a site the width that it has.

    python -m stages.search.explain 7.mlp      # in words
    python -m stages.search.explain            # every site, a line each, the dearest next cut first

The search writes it. What the forecast of the winner lies above the dense model's is the sum of what each
site adds: by its damage curve, by what the pairs taught of that curve, and by the trees, whose part is
divided by their SHAP values (Lundberg & Lee 2017, as xgboost computes them exactly). What one width more or
less would cost is forecast. A search that minimises the objective at a budget cuts until what every site
would cost next, a parameter, is about alike: sites whose next cut is dear stay as they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from stages.architecture import Architecture, Kind, LayerWidth, ModelShape, Site, Width
from stages.files import InputError, numbers, read_csv
from stages.search.tables import EXPLAINED, write_rows
from stages.stage import DATA, command

if TYPE_CHECKING:
    from stages.build_dataset.features import Features
    from stages.search.narrowed_space import NarrowedSite
    from stages.train_predictor.predictor import Predictor

_FIGURES = ("ratio", "curve", "pairs", "trees", "alone", "rank", "low", "high")
_PRICES = ("next_price", "last_price")
_COLUMNS = ("site", "dense", "kept", "label", *_FIGURES, *_PRICES)


@dataclass(frozen=True)
class Explanation:
    """What is forecast of one site's width: costs are of the objective, prices a million parameters."""

    site: Site
    dense: Width
    kept: Width
    ratio: float
    curve: float
    """What the cut adds to the forecast by the site's damage curve as it was expected."""
    pairs: float
    """What the pairs corrected of that."""
    trees: float
    """What the trees, or whatever else forecasts beside curves, add."""
    alone: float | None
    """What cutting the site alone by `ALONE` costs, in nats a token, by its damage curve, if it has one."""
    rank: int
    """Its place among all sites by that, the dearest first; 0 without a curve."""
    label: str
    """What narrowing found it."""
    interval: tuple[float, float]
    """The ratios that narrowing left to the search."""
    next_price: float | None
    """What the next width below would cost; None where the site is gone, or its width between two."""
    last_price: float | None
    """What the last width that was given up has cost; None where the site is whole."""

    @property
    def rise(self) -> float:
        """What the cut adds to the forecast objective: over all sites, what the winner lies above dense."""
        return self.curve + self.pairs + self.trees


def explanations(
    predictor: Predictor,
    features: Features,
    winner: Architecture,
    granularity: int,
    narrowed: Sequence[NarrowedSite],
    weights: Mapping[str, float],
) -> list[Explanation]:
    """One of every site, in the order in which data passes; `weights` are the objective's."""
    from stages.build_dataset.features import ALONE

    shape, sites = features.shape, list(features.shape.sites())
    left = {n.site: n for n in narrowed}
    alone = {} if features.curves is None else {s: features.curves.damage(s, ALONE) for s in sites}
    dearest = sorted(alone, key=lambda site: -alone[site])
    parts = predictor.contributions(features, winner, weights)
    prices = _prices(predictor, features, winner, granularity, weights)
    return [
        Explanation(
            site=site,
            dense=shape.width(site),
            kept=winner.widths[site.layer].of(site.kind),
            ratio=winner.site_ratio(shape, site),
            curve=parts["curve"][site],
            pairs=parts["pairs"][site],
            trees=parts["trees"][site],
            alone=alone.get(site),
            rank=dearest.index(site) + 1 if site in alone else 0,
            label=left[site].label,
            interval=left[site].interval,
            next_price=prices.get((site, 1)),
            last_price=prices.get((site, -1)),
        )
        for site in sites
    ]


def _prices(
    predictor: Predictor,
    features: Features,
    winner: Architecture,
    granularity: int,
    weights: Mapping[str, float],
) -> dict[tuple[Site, int], float]:
    """What one width less (1) or more (-1) of a site changes the forecast by, a million parameters."""
    from stages.metrics.objective import objective_of
    from stages.sample.space import options

    shape = features.shape
    asked: dict[tuple[Site, int], Architecture] = {}
    for site in shape.sites():
        widths = [option.width for option in options(shape, site, granularity)]
        kept = winner.widths[site.layer].of(site.kind)
        if kept not in widths:  # between two of this granularity
            continue
        place = widths.index(kept)
        for step in (-1, 1):
            if 0 <= place + step < len(widths):
                asked[site, step] = _with(winner, site, widths[place + step])
    forecasts = predictor.forecast(features.matrix([winner, *asked.values()]))
    base, *others = (
        objective_of({target: values[i] for target, values in forecasts.items()}, weights)
        for i in range(len(asked) + 1)
    )
    return {
        key: key[1] * float(other - base) / _millions(shape, asked[key], winner)
        for key, other in zip(asked, others, strict=True)
    }


def _with(architecture: Architecture, site: Site, width: Width) -> Architecture:
    """The architecture with another width of one site."""
    widths = list(architecture.widths)
    groups, heads, channels = widths[site.layer]
    whole = (*width, channels) if site.kind is Kind.ATTENTION else (groups, heads, *width)
    widths[site.layer] = LayerWidth._make(whole)
    return Architecture(tuple(widths))


def _millions(shape: ModelShape, one: Architecture, other: Architecture) -> float:
    return abs(one.kept_parameters(shape) - other.kept_parameters(shape)) / 1e6


def write(path: Path, every: Sequence[Explanation]) -> None:
    """Write a row a site; what is not known is left empty."""
    rows = []
    for one in every:
        low, high = one.interval
        values = {**one.__dict__, "low": low, "high": high}
        rows.append(values | {name: "x".join(map(str, values[name])) for name in ("dense", "kept")})
    write_rows(path, _COLUMNS, rows)


def read(path: Path) -> list[Explanation]:
    """Read what `write` wrote.

    Raises:
        InputError: the file is missing or damaged, or lacks a column.
    """
    return [_read(path, row) for row in read_csv(path, _COLUMNS, "search")]


def _read(path: Path, row: Mapping[str, str]) -> Explanation:
    words = {key: row[key] for key in ("site", "dense", "kept", "label")}
    values = numbers({key: row[key] for key in (*_FIGURES, *_PRICES)}, path, "search")
    try:
        layer, kind = words["site"].split(".")
        dense, kept = (tuple(map(int, words[name].split("x"))) for name in ("dense", "kept"))
        return Explanation(
            site=Site(int(layer), Kind(kind)),
            dense=dense,
            kept=kept,
            ratio=values["ratio"],
            curve=values["curve"],
            pairs=values["pairs"],
            trees=values["trees"],
            alone=values.get("alone"),
            rank=int(values["rank"]),
            label=words["label"],
            interval=(values["low"], values["high"]),
            next_price=values.get("next_price"),
            last_price=values.get("last_price"),
        )
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: the row of {row['site']} is damaged; run `dvc repro search`") from error


def going_rate(every: Sequence[Explanation]) -> float:
    """The median price of all sites' next cuts; 0 where there is none."""
    return median([e.next_price for e in every if e.next_price is not None] or [0.0])


def words(one: Explanation, every: Sequence[Explanation]) -> list[str]:
    """The explanation of one site, in sentences."""
    from stages.build_dataset.features import ALONE

    rate = going_rate(every)
    cuts = f"{100 * one.ratio:.0f} % of its parameters are removed" if one.ratio else "nothing is removed"
    found = [f"{one.site}: {told(one.kept)} are kept, of {told(one.dense)}; {cuts}."]
    low, high = one.interval
    label = {"exempt": "left dense", "other": "neither sensitive nor insensitive"}.get(one.label, one.label)
    found.append(f"Narrowing found it {label}: ratios of {low:g} to {high:g} were left to the search.")
    if one.alone is not None:
        found.append(
            f"Cut alone by {100 * ALONE:.0f} % it costs {one.alone:.4f} nats a token by its damage curve: "
            f"place {one.rank} of {len(every)}, the dearest first (narrowing asks what a parameter costs)."
        )
    if one.ratio:
        found.append(
            f"As it is cut, it adds {one.rise:+.4f} to the forecast objective: {one.curve:+.4f} by its "
            f"damage curve, {one.pairs:+.4f} by what the pairs taught of it, {one.trees:+.4f} by the trees."
        )
    if one.last_price is not None:
        found.append(f"Its last cut cost {one.last_price:.4f} a million parameters.")
    if one.next_price is None:
        nothing = "There is nothing left to cut." if not any(one.kept) else "Its width lies between two."
        found.append(nothing)
    else:
        than = "dearer" if one.next_price > rate else "cheaper"
        found.append(
            f"Its next cut would cost {one.next_price:.4f} a million parameters, {than} than the median of "
            f"all sites, {rate:.4f}" + (": so it stays." if one.next_price > rate else ".")
        )
    return found


def told(width: Width) -> str:
    """A width in words."""
    return f"{width[0]:,} channels" if len(width) == 1 else f"{width[0]} x {width[1]} heads"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.search.explain", description=__doc__)
    parser.add_argument("site", nargs="?", help="such as 7.mlp or 12.attention; without it, all")
    parser.add_argument("--data", type=Path, default=DATA, help="default: data")
    arguments = parser.parse_args()
    every = read(arguments.data / "search" / EXPLAINED)
    if arguments.site is None:
        print(f"{'site':14}{'kept':>16}{'ratio':>8}{'adds':>10}{'last price':>12}{'next price':>12}")
        for one in sorted(every, key=lambda e: -(e.next_price or 0.0)):
            last, following = (
                "–" if price is None else f"{price:.4f}" for price in (one.last_price, one.next_price)
            )
            kept = told(one.kept)
            print(f"{one.site!s:14}{kept:>16}{one.ratio:>8.2f}{one.rise:>10.4f}{last:>12}{following:>12}")
        return
    by_name = {str(one.site): one for one in every}
    if arguments.site not in by_name:
        raise InputError(
            f"there is no site {arguments.site!r}; sites are called like {next(iter(by_name))}, up to "
            f"{[*by_name][-1]}"
        )
    print("\n".join(words(by_name[arguments.site], every)))


if __name__ == "__main__":
    command("explain", main)
