"""Why the winner gives a site the width that it has.

    python -m stages.search.explain 7.mlp      # in words
    python -m stages.search.explain            # every site, a line each, the dearest next cut first

Read from what a run left: the predictor's forecasts of the winner with that site cut one width further, given
one back, or left whole. A search that minimises the objective at a budget cuts until what every site would
cost next, a parameter, is about alike: sites whose next cut is dear stay as they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from stages.architecture import Architecture, Kind, LayerWidth, ModelShape, Site, Width
from stages.build_dataset.features import ALONE, Features
from stages.config.params import Params, load_params
from stages.evaluate.results.damage import DamageCurves
from stages.files import InputError
from stages.metrics.objective import objective_of
from stages.sample import designs
from stages.sample.space import options
from stages.search import narrowed_space, outcome
from stages.search.narrowed_space import NarrowedSite
from stages.stage import DATA, command
from stages.train_predictor.predictor import Predictor


@dataclass(frozen=True)
class Explanation:
    """What is forecast around one site's width: costs are of the objective, prices a million parameters."""

    site: Site
    dense: Width
    kept: Width
    ratio: float
    cost: float
    """What the forecast rises by, because the site is cut as it is."""
    next_price: float | None
    """What the next width below would cost; None where the site is gone."""
    last_price: float | None
    """What the last width that was given up has cost; None where the site is whole."""
    alone: float | None
    """What cutting the site alone by `ALONE` costs, in nats a token, by its damage curve."""
    rank: int
    """Its place among all sites by that, the dearest first."""
    narrowed: NarrowedSite | None


def explanations(data: Path, params: Params) -> list[Explanation]:
    """One of every site, in the order in which data passes.

    Raises:
        InputError: a file of the run is missing, damaged or of another release.
    """
    shape, _ = designs.read(data / "sample" / "architectures.json")
    predictor = Predictor.load(data / "train_predictor" / "predictor")
    curves = DamageCurves.read(data / "build_dataset" / "damage.json", stage="build-dataset")
    scores = data / "evaluate" / "importance.safetensors"
    features = Features.of_model(shape, params.build_dataset.band, scores, curves)
    candidates = outcome.read(data / "search" / "outcome.json")
    winner = outcome.candidate_of(candidates, outcome.WINNER).architecture
    left = {n.site: n for n in narrowed_space.read(data / "search" / "narrowed_space.json").sites}
    sites = list(shape.sites())
    alone = {} if curves is None else {site: curves.damage(site, ALONE) for site in sites}
    dearest = sorted(alone, key=lambda site: -alone[site])
    asked: dict[tuple[Site, int], Architecture] = {}
    for site in sites:
        widths = [option.width for option in options(shape, site, params.sample.mlp_granularity)]
        kept = winner.widths[site.layer].of(site.kind)
        place = widths.index(kept) if kept in widths else None
        asked[site, 0] = _with(winner, site, shape.width(site))
        if place is not None:
            for step in (-1, 1):
                if 0 <= place + step < len(widths):
                    asked[site, step] = _with(winner, site, widths[place + step])
    worth = _objectives(predictor, features, [winner, *asked.values()], params.search.objective)
    base, costs = worth[0], dict(zip(asked, worth[1:], strict=True))
    found = []
    for site in sites:
        kept = winner.widths[site.layer].of(site.kind)
        prices = {
            step: step * (costs[site, step] - base) / _millions(shape, asked[site, step], winner)
            for step in (-1, 1)
            if (site, step) in costs
        }
        found.append(
            Explanation(
                site=site,
                dense=shape.width(site),
                kept=kept,
                ratio=winner.site_ratio(shape, site),
                cost=base - costs[site, 0],
                next_price=prices.get(1),
                last_price=prices.get(-1),
                alone=alone.get(site),
                rank=dearest.index(site) + 1 if site in alone else 0,
                narrowed=left.get(site),
            )
        )
    return found


def _with(architecture: Architecture, site: Site, width: Width) -> Architecture:
    """The architecture with another width of one site."""
    widths = list(architecture.widths)
    groups, heads, channels = widths[site.layer]
    whole = (*width, channels) if site.kind is Kind.ATTENTION else (groups, heads, *width)
    widths[site.layer] = LayerWidth._make(whole)
    return Architecture(tuple(widths))


def _millions(shape: ModelShape, one: Architecture, other: Architecture) -> float:
    return abs(one.kept_parameters(shape) - other.kept_parameters(shape)) / 1e6


def _objectives(
    predictor: Predictor,
    features: Features,
    architectures: Sequence[Architecture],
    weights: Mapping[str, float],
) -> list[float]:
    forecasts = predictor.forecast(features.matrix(architectures))
    return [
        float(objective_of({target: values[i] for target, values in forecasts.items()}, weights))
        for i in range(len(architectures))
    ]


def words(one: Explanation, all_of_them: Sequence[Explanation]) -> list[str]:
    """The explanation of one site, in sentences."""
    rate = median(e.next_price for e in all_of_them if e.next_price is not None)
    cuts = f"{100 * one.ratio:.0f} % of its parameters are removed" if one.ratio else "nothing is removed"
    found = [f"{one.site}: {_told(one.kept)} are kept, of {_told(one.dense)}; {cuts}."]
    if one.narrowed is not None:
        low, high = one.narrowed.interval
        label = "left dense" if one.narrowed.label == "exempt" else f"{one.narrowed.label}"
        found.append(f"Narrowing found it {label}: ratios of {low:g} to {high:g} were left to the search.")
    if one.alone is not None:
        found.append(
            f"Cut alone by {100 * ALONE:.0f} % it costs {one.alone:.4f} nats a token by its damage curve: "
            f"place {one.rank} of {len(all_of_them)}, the dearest first."
        )
    if one.ratio:
        found.append(f"As it is cut, it adds {one.cost:+.4f} to the forecast objective.")
    if one.last_price is not None:
        found.append(f"Its last cut cost {one.last_price:.4f} a million parameters.")
    if one.next_price is None:
        found.append("There is nothing left to cut.")
    else:
        than = "dearer" if one.next_price > rate else "cheaper"
        found.append(
            f"Its next cut would cost {one.next_price:.4f} a million parameters, {than} than the median of "
            f"all sites, {rate:.4f}" + (": so it stays." if one.next_price > rate else ".")
        )
    return found


def _told(width: Width) -> str:
    return f"{width[0]:,} channels" if len(width) == 1 else f"{width[0]} x {width[1]} heads"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.search.explain", description=__doc__)
    parser.add_argument("site", nargs="?", help="such as 7.mlp or 12.attention; without it, all")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="default: params.yaml")
    arguments = parser.parse_args()
    every = explanations(DATA, load_params(arguments.params))
    if arguments.site is None:
        print(f"{'site':14}{'kept':>16}{'ratio':>8}{'cost':>10}{'last price':>12}{'next price':>12}")
        for one in sorted(every, key=lambda e: -(e.next_price or 0.0)):
            last, following = (
                "–" if price is None else f"{price:.4f}" for price in (one.last_price, one.next_price)
            )
            kept = _told(one.kept)
            print(f"{one.site!s:14}{kept:>16}{one.ratio:>8.2f}{one.cost:>10.4f}{last:>12}{following:>12}")
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
