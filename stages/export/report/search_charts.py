"""How the course of the search is drawn, and why the winner's widths are as they are."""

from __future__ import annotations

import math
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.ticker import MaxNLocator

from stages.architecture import Kind
from stages.export.report.charts import COLOURS
from stages.export.report.data import ReportData
from stages.search.explain import Explanation, going_rate

PARTS = {"curve": "#a9b1ba", "pairs": "#0072B2", "trees": "#CC79A7"}
PART_WORDS = {
    "curve": "damage curve as expected",
    "pairs": "what the pairs corrected of it",
    "trees": "what the trees added",
}
EXPLAINED_SIZE = (10.4, 6.6)  # inches
_TALLEST = 4  # times the median price: a bar above is cut off, with its number


def draw_course(figure: FigureBase, data: ReportData) -> None:
    """The measured objectives of the budget's architectures, the best so far, and the one-shot rule's."""
    axes = figure.subplots()
    within = [e for e in data.course if e.in_budget]
    for name, chosen in (
        ("pairs", [e for e in within if e.round == 0]),
        ("finalists", [e for e in within if e.round > 0]),
    ):
        label = "pairs of the budget" if name == "pairs" else "measured by the rounds"
        axes.scatter(
            [e.evaluation for e in chosen],
            [e.objective for e in chosen],
            s=18,
            color=COLOURS[name],
            linewidths=0,
            label=label if chosen else None,
            zorder=3,
        )
    best = [e for e in data.course if math.isfinite(e.best)]
    axes.step(
        [e.evaluation for e in best],
        [e.best for e in best],
        where="post",
        color=COLOURS["winner"],
        linewidth=1.4,
        label="best so far",
    )
    for rule in [e for e in data.course if e.one_shot][:1]:
        axes.axhline(
            rule.objective,
            color=COLOURS["simple"],
            linewidth=1,
            linestyle=(0, (4, 3)),
            label="one-shot, by the damage curves alone",
        )
    starts = {e.round: e.evaluation for e in reversed(data.course) if e.round > 0}
    for number, start in starts.items():
        axes.axvline(start - 0.5, color="#9aa0a6", linewidth=0.7)
        axes.annotate(
            f"round {number}", (start - 0.5, 1), (3, -9), xycoords=("data", "axes fraction"),
            textcoords="offset points", fontsize=7.5, color="#5f6368",
        )  # fmt: skip
    pairs = sum(e.round == 0 for e in data.course)
    axes.set_xlabel(f"measured architectures, {pairs} pairs first")
    axes.set_ylabel("measured objective")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.02, y=0.12)
    figure.legend(loc="outside lower center", ncols=4)


def draw_explained(figure: FigureBase, data: ReportData) -> None:
    """Two strips a kind of site: what its cut adds to the forecast, by part, and what the next would cost."""
    strips = figure.subplots(4, 1, sharex=True, height_ratios=(4, 3, 4, 3))
    rate = going_rate(data.explained)
    for kind, above, below in zip(Kind, strips[::2], strips[1::2], strict=True):
        sites = [one for one in data.explained if one.site.kind is kind]
        _parts(above, sites)
        _prices(below, sites, rate)
        above.set_title("MLP" if kind is Kind.MLP else "attention", pad=6)
    strips[-1].set_xlabel("layer")
    strips[-1].xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True))
    strips[-1].set_xlim(-0.7, data.shape.layers - 0.3)
    figure.align_ylabels(strips)
    patch = matplotlib.patches.Patch
    keys: list[Any] = [patch(color=PARTS[name], label=words) for name, words in PART_WORDS.items()]
    line = matplotlib.lines.Line2D
    keys.append(patch(color=COLOURS["winner"], label="next cut"))
    keys.append(
        line([], [], color="#3c4043", linewidth=0.9, linestyle=(0, (4, 3)), label="median of all sites")
    )
    figure.legend(handles=keys, loc="outside lower center", ncols=5, columnspacing=1.4)


def _parts(axes: Axes, sites: list[Explanation]) -> None:
    """Stacked bars: what raises the forecast above the line, what lowers it below."""
    layers = [one.site.layer for one in sites]
    up, down = [0.0] * len(sites), [0.0] * len(sites)
    for name, colour in PARTS.items():
        values = [getattr(one, name) for one in sites]
        starts = [u if value >= 0 else d for value, u, d in zip(values, up, down, strict=True)]
        axes.bar(layers, values, bottom=starts, color=colour, width=0.8, linewidth=0)
        up = [u + max(value, 0.0) for u, value in zip(up, values, strict=True)]
        down = [d + min(value, 0.0) for d, value in zip(down, values, strict=True)]
    axes.axhline(0, color="#9aa0a6", linewidth=0.7)
    axes.grid(False, axis="x")
    axes.set_ylabel("adds")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))


def _prices(axes: Axes, sites: list[Explanation], rate: float) -> None:
    """Bars of what the next cut would cost, with the median of all sites."""
    highest = max((one.next_price or 0.0 for one in sites), default=0.0)
    top = _TALLEST * rate if rate > 0 else highest or 1.0
    for one in sites:
        if one.next_price is None:
            continue
        axes.bar(one.site.layer, min(one.next_price, top), color=COLOURS["winner"], width=0.8, linewidth=0)
        if one.next_price > top:
            axes.text(
                one.site.layer, top, f"{one.next_price / rate:.0f}×", ha="center", va="bottom",
                fontsize=6.5, color="#3c4043",
            )  # fmt: skip
    axes.axhline(rate, color="#3c4043", linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set_ylim(min(0.0, *(one.next_price or 0.0 for one in sites), 0.0), 1.12 * top)
    axes.grid(False, axis="x")
    axes.set_ylabel("a million\nparameters")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
