"""How the types of weights are drawn: size or speed against perplexity, dense beside pruned."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import FigureBase

from stages.export.report.alternatives import beaten, measured, who
from stages.export.report.charts import COLOURS, MARKS, round_log_ticks
from stages.export.report.data import ReportData
from stages.export.results.final_table import Alternative
from stages.metrics.registered import metric_of
from stages.sample.designs import DENSE


def draw_sizes(figure: FigureBase, data: ReportData, key: str) -> None:
    """The bytes of a file against the perplexity `key`."""
    axes = figure.subplots()
    _draw(axes, data, key, lambda one: one.size_bytes / 1e6)
    axes.set_xlabel("weights, MB")
    axes.set_xlim(left=0)


def draw_speeds(figure: FigureBase, data: ReportData, key: str) -> None:
    """Tokens a second that llama.cpp writes against the perplexity `key`."""
    axes, speeds = figure.subplots(), measured(data)
    _draw(axes, data, key, lambda one: speeds[one.model, one.type].decode.median)
    axes.set_xlabel("tokens a second, written by llama.cpp")


def has_speeds(data: ReportData) -> bool:
    """Whether the speed of every model and type is known."""
    known = measured(data)
    return bool(known) and all((one.model, one.type) in known for one in data.alternatives)


def _draw(axes: Axes, data: ReportData, key: str, place: Callable[[Alternative], float]) -> None:
    lost = beaten(data.alternatives)
    for model in dict.fromkeys(one.model for one in data.alternatives):
        name = DENSE if model == DENSE else "winner"
        points = [one for one in data.alternatives if one.model == model and key in one.metrics]
        xs, ys = [place(one) for one in points], [one.metrics[key] for one in points]
        label = who(model)
        axes.plot(xs, ys, color=COLOURS[name], linewidth=0.9, alpha=0.5, zorder=1)
        for one, x, y in zip(points, xs, ys, strict=True):
            hollow = (one.model, one.type) in lost
            axes.plot(
                x, y, linestyle="none", marker=MARKS[name], markersize=12 if name == "winner" else 7,
                markerfacecolor="white" if hollow else COLOURS[name],
                markeredgecolor=COLOURS[name] if hollow else "white",
                markeredgewidth=1.2 if hollow else 0.7, zorder=3, label=label if one is points[0] else None,
            )  # fmt: skip
            axes.annotate(one.type, (x, y), (7, 5), textcoords="offset points", fontsize=7.5, color="#3c4043")
    axes.set_yscale("log")
    axes.margins(x=0.12, y=0.12)
    round_log_ticks(axes)
    axes.set_title(metric_of(key).corpus)
    axes.set_ylabel("perplexity, report part (log axis)")
    axes.legend(loc="best")
