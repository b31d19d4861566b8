"""What each width of a site takes on this machine, in milliseconds.

    python -m stages.sample.latency [--again]

measures the model of params.yaml (or takes what was measured before, unless --again) and prints what
cuts of 10 to 50 % would take: what `budget.prefill_ms` and `budget.decode_ms` may reasonably ask for.

Models of `LAYERS` layers, all of one width, are timed in turn: a width of a site takes what its model
takes longer than the one in which these sites are dropped, divided by the number of layers. So every
weight comes from memory as it does in a whole model, not out of a processor's cache.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import platform
import sys
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.architecture import Architecture, Kind, LayerWidth, ModelShape, Width
from stages.config.budget import Budget
from stages.config.params import load_params
from stages.files import InputError, cache_folder, kept, read_document, write_json
from stages.sample import timing
from stages.sample.source import read_shape
from stages.sample.space import Space
from stages.sample.timing import PHASES, Times
from stages.stage import command

SCHEMA, VERSION = "prunecast.latency", 1
VALUES = 1
"""The version of what a table says, set by hand: raise it when it is measured or made otherwise."""
LAYERS = 8
"""Layers of the models that are timed, at most: their weights fill the caches of common processors."""
_GRID, _LINE = 4, 7  # widths measured along a side of a grid, and of a line

Take = Callable[[Sequence[Sequence[LayerWidth]]], list[Times]]
"""A function from the layers' widths of models to what each of them takes."""


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of the constant part (embedding, final norm, head) and of measured widths, by phase.

    Widths between measured ones are interpolated linearly. A wider site never takes less.
    """

    setting: Mapping[str, Any]
    """What was measured, where and how: what a table is found again by."""
    constant: Mapping[str, float]
    sites: Mapping[Kind, Mapping[Width, Mapping[str, float]]]

    def costs(self, phase: str) -> Callable[[Kind, Width], float]:
        """The milliseconds that a site of a kind takes at any width."""
        found: dict[tuple[Kind, Width], float] = {}

        def cost(kind: Kind, width: Width) -> float:
            if (kind, width) not in found:
                values = {w: v[phase] for w, v in self.sites[kind].items()}
                found[kind, width] = _interpolate(values, width) if all(width) else 0.0
            return found[kind, width]

        return cost

    def forecast(self, phase: str, architecture: Architecture) -> float:
        """Milliseconds of a whole model."""
        cost = self.costs(phase)
        sites = (cost(kind, width.of(kind)) for width in architecture.widths for kind in Kind)
        return self.constant[phase] + sum(sites)

    def to_json(self) -> dict[str, Any]:
        rows = [
            {"kind": kind.value, "width": list(width), **values}
            for kind, widths in self.sites.items()
            for width, values in widths.items()
        ]
        return {"setting": dict(self.setting), "constant": dict(self.constant), "sites": rows}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> LatencyTable:
        """The inverse of `to_json`; KeyError, TypeError or ValueError where the content is damaged."""
        sites: dict[Kind, dict[Width, dict[str, float]]] = {kind: {} for kind in Kind}
        for row in content["sites"]:
            sites[Kind(row["kind"])][tuple(row["width"])] = {phase: float(row[phase]) for phase in PHASES}
        if not all(sites.values()):
            raise ValueError("a kind of site has no row")
        return cls(content["setting"], {phase: float(content["constant"][phase]) for phase in PHASES}, sites)


def table_of(shape: ModelShape, budget: Budget, granularity: int, again: bool = False) -> LatencyTable:
    """The table of this machine, model shape and setting: as measured before, or measured now.

    Raises:
        InputError: it is to be measured on a GPU that is not there.
    """
    setting = _setting(shape, budget, granularity)
    key = hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / "latency" / f"{key}.json"
    table = None if again else kept(path, _read)
    if table is None:
        table = measure(shape, budget, granularity, setting)
        try:
            write_json(path, SCHEMA, VERSION, table.to_json())
            print(f"latency table measured, and kept as {path}", flush=True)
        except InputError as error:
            print(f"latency table measured, and not kept: {error}, or name another folder in PRUNECAST_CACHE")
    return table


def _read(path: Path) -> LatencyTable:
    return read_document(path, SCHEMA, VERSION, "sample", LatencyTable.from_json)


def _setting(shape: ModelShape, budget: Budget, granularity: int) -> dict[str, Any]:
    import torch
    import transformers

    section = budget.latency.model_dump()
    section["threads"] = budget.latency.threads or torch.get_num_threads()
    if budget.latency.device == "cuda" and torch.cuda.is_available():
        processor = torch.cuda.get_device_name()
    else:
        processor = _processor()
    return {
        "shape": shape.to_json(),
        "dtype": budget.dtype,
        "granularity": granularity,
        **section,
        "machine": {"node": platform.node(), "processor": processor, "cores": os.cpu_count()},
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "version": VALUES,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measure(shape: ModelShape, budget: Budget, granularity: int, setting: Mapping[str, Any]) -> LatencyTable:
    """Time models of random weights on this machine, and make the table of what they take."""

    def take(models: Sequence[Sequence[LayerWidth]]) -> list[Times]:
        made = timing.random_models(shape, models, budget.dtype, budget.latency.device)
        what = f"measuring what {len(made)} widths take, with {len(models[0])} layers each"
        print(what, file=sys.stderr, flush=True)
        return timing.times(made, shape.vocabulary, budget.latency, "latency table")

    return table_by(shape, granularity, setting, take)


def table_by(shape: ModelShape, granularity: int, setting: Mapping[str, Any], take: Take) -> LatencyTable:
    """The table of what `take` says that models take: one a measured width of attention and of MLP.

    All layers of a model have that width, and the other sites of it are dense.
    """
    layers, dense = min(LAYERS, shape.layers), shape.widest
    widths = {dense: 0}
    for kind, found in _measured(shape, granularity).items():
        for width in found:
            full = (*width, dense.channels) if kind is Kind.ATTENTION else (*dense[:2], *width)
            widths.setdefault(LayerWidth._make(full), len(widths))
    found_times = take([[width] * layers for width in widths])
    sites: dict[Kind, dict[Width, dict[str, float]]] = {kind: {} for kind in Kind}
    constant = {}
    for phase in PHASES:
        unit = found_times[0].median(phase)
        taken = {w: unit * found_times[i].relative(phase, found_times[0]) for w, i in widths.items()}
        dropped = {Kind.ATTENTION: LayerWidth(0, 0, dense.channels), Kind.MLP: LayerWidth(*dense[:2], 0)}
        for kind, without in dropped.items():
            own = {
                width.of(kind): (value - taken[without]) / layers
                for width, value in taken.items()
                if all(width.of(k) == dense.of(k) for k in Kind if k is not kind)
            }
            for width, value in _monotone(own).items():
                sites[kind].setdefault(width, {})[phase] = value
        constant[phase] = unit - layers * sum(sites[kind][dense.of(kind)][phase] for kind in Kind)
    return LatencyTable(setting, constant, sites)


def _measured(shape: ModelShape, granularity: int) -> dict[Kind, list[Width]]:
    """The widths that are timed: a grid of whole groups and heads, and a line of channels."""
    several = shape.kv_groups > 1 and shape.heads_per_group > 1
    groups, heads = (
        _spread(range(1, n + 1), _GRID if several else _LINE)
        for n in (shape.kv_groups, shape.heads_per_group)
    )
    channels = sorted({*range(granularity, shape.channels, granularity), shape.channels})
    return {
        Kind.ATTENTION: [(0, 0), *itertools.product(groups, heads)],
        Kind.MLP: [(0,), *((c,) for c in _spread(channels, _LINE))],
    }


def _spread(values: Sequence[int], at_most: int) -> list[int]:
    """Evenly placed ones of the values, first and last among them."""
    count = min(at_most, len(values))
    return sorted(
        {values[round(i * (len(values) - 1) / max(1, count - 1))] for i in range(count)} | {values[-1]}
    )


def _monotone(values: Mapping[Width, float]) -> dict[Width, float]:
    """The mean of the least function above and the greatest below that rise with every side of a width."""

    def wider(a: Width, b: Width) -> bool:
        return all(x >= y for x, y in zip(a, b, strict=True))

    return {
        width: (
            max(v for w, v in values.items() if wider(width, w))
            + min(v for w, v in values.items() if wider(w, width))
        )
        / 2
        for width in values
    }


def _interpolate(values: Mapping[Width, float], width: Width) -> float:
    """Multilinear between the measured widths around; a side narrower than any measured counts from 0."""
    if len(width) == 1:
        return _between(sorted((w[0], v) for w, v in values.items()), width[0])
    grid: dict[int, dict[Width, float]] = {}
    for w, v in values.items():
        if all(w):
            grid.setdefault(w[0], {})[w[1:]] = v
    return _between(sorted((g, _interpolate(row, width[1:])) for g, row in grid.items()), width[0])


def _between(points: Sequence[tuple[int, float]], x: int) -> float:
    """Linear between points, constant beyond the last."""
    place = bisect_left(points, (x,))
    if place == len(points):
        return points[-1][1]
    if points[place][0] == x or place == 0:
        return points[place][1]
    (x0, y0), (x1, y1) = points[place - 1], points[place]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.sample.latency")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="default: params.yaml")
    parser.add_argument("--again", action="store_true", help="measure even what was measured before")
    arguments = parser.parse_args()
    section = load_params(arguments.params)
    shape = read_shape(section.model)
    table = table_of(shape, section.budget, section.sample.mlp_granularity, arguments.again)
    space = Space(shape, section.sample.mlp_granularity, {})
    print("every site cut by   prefill_ms   decode_ms")
    for percent in (0, 10, 20, 30, 40, 50):
        architecture = space.from_ratios(dict.fromkeys(shape.sites(), percent / 100))
        prefill, decode = (table.forecast(phase, architecture) for phase in PHASES)
        print(f"{percent:>11} % {prefill:>18.2f} {decode:>11.3f}")


if __name__ == "__main__":
    command("latency", main)
