"""How the front is drawn: perplexity of each overall ratio, measured beside forecast."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.figure import FigureBase
from matplotlib.lines import Line2D

from stages.export.report.charts import COLOURS, MARKS, label_perplexity
from stages.export.report.data import FrontPoint, ReportData

FORECAST = "#5f6368"


def draw_front(figure: FigureBase, data: ReportData, text: str) -> None:
    """Overall ratio against perplexity, logarithmic: a line through the points that none dominates."""
    axes = figure.subplots()
    points = [p for p in data.front if math.isfinite(p.ppl.get(text, math.inf))]
    best = [p for p in points if not p.dominated]
    axes.plot(
        [100 * p.overall_ratio for p in best], [p.ppl[text] for p in best],
        color="#c9ced4", linewidth=1.4, zorder=1,
    )  # fmt: skip
    for point in points:
        ratio, forecast = 100 * point.overall_ratio, point.forecast_ppl.get(text, math.nan)
        if math.isfinite(forecast):
            axes.plot([ratio, ratio], [forecast, point.ppl[text]], color=FORECAST, linewidth=0.8, zorder=2)
            axes.plot(
                ratio, forecast, marker="_", markersize=11, color=FORECAST, markeredgewidth=1.6, zorder=2
            )
        axes.plot(ratio, point.ppl[text], **_mark(point), zorder=4)
        if not point.dominated:
            axes.annotate(
                f"{point.ppl[text]:.1f}", (ratio, point.ppl[text]), (7, -9), textcoords="offset points",
                fontsize=7.5, color="#3c4043",
            )  # fmt: skip
    axes.set_yscale("log")
    axes.margins(x=0.08, y=0.1)
    label_perplexity(axes, text)
    axes.legend(handles=_keys(points), loc="best")


def _mark(point: FrontPoint) -> dict[str, Any]:
    """Filled, or hollow where another point is better."""
    colour = COLOURS[point.name]
    return {
        "linestyle": "none",
        "marker": MARKS[point.name],
        "markersize": {"winner": 13, "front": 6.5}.get(point.name, 7),
        "markerfacecolor": "white" if point.dominated else colour,
        "markeredgecolor": colour if point.dominated else "white",
        "markeredgewidth": 1.3 if point.dominated else 0.7,
    }


def _keys(points: list[FrontPoint]) -> list[Any]:
    def key(label: str, **style: Any) -> Line2D:
        return Line2D([], [], linestyle="none", label=label, **{"markersize": 6} | style)

    keys = [
        key(name, marker=mark, color=COLOURS[name], markersize=10 if name == "winner" else 6)
        for name, mark in MARKS.items()
        if any(p.name == name for p in points)
    ]
    keys.append(key("its forecast", marker="_", markersize=9, color=FORECAST))
    if any(p.dominated for p in points):
        keys.append(key("hollow: dominated", marker="o", markerfacecolor="white", markeredgecolor=FORECAST))
    return keys
