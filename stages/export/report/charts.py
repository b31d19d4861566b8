"""How each picture of the report is drawn. Colours and marks mean the same in all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from stages.architecture import Kind, Site
from stages.export.report.data import MeasuredPoint, ReportData
from stages.export.results.final_table import RECOVERED, Contender
from stages.metrics.perplexity import LOG_PPL
from stages.search.outcome import WINNER

# Okabe and Ito's palette: distinct under every common colour vision deficiency.
COLOURS = {
    "pairs": "#a9b1ba",
    "held out": "#56B4E9",
    "finalists": "#0072B2",
    "front": "#0072B2",
    "dense": "#000000",
    "uniform": "#E69F00",
    "simple": "#009E73",
    "winner": "#D55E00",
}
MARKS = {"dense": "o", "uniform": "s", "simple": "^", "front": "D", "winner": "*"}
HEAT_MAP_ORDER = ("winner", "uniform", "simple")
LAYERS_A_BAND = 30
GROUP_HEIGHT = 2.35  # of a contender's two rows and the gap below, in cells


def has_forecast(measured: MeasuredPoint, text: str) -> bool:
    """Whether both values of the text are there and finite."""
    forecast = (measured.forecast_log_ppl or {}).get(text, math.inf)
    return math.isfinite(forecast) and math.isfinite(measured.log_ppl.get(text, math.inf))


def heat_map_size(layers: int, contenders: int) -> tuple[float, float]:
    """Width and height in inches for cells in which a number is readable."""
    bands = math.ceil(layers / LAYERS_A_BAND)
    width = 1.45 + 0.31 * math.ceil(layers / bands)
    return max(4.0, width), bands * (0.5 + 0.25 * GROUP_HEIGHT * contenders)


def draw_widths(figure: FigureBase, data: ReportData, compared: Sequence[Contender]) -> None:
    """Kept percentage of every site: two rows a contender, a band for every 30 layers or fewer."""
    layers = data.shape.layers
    bands = math.ceil(layers / LAYERS_A_BAND)
    per_band = math.ceil(layers / bands)
    rows = [(c, kind) for c in compared for kind in Kind]
    places = [GROUP_HEIGHT * (index // 2) + index % 2 for index in range(len(rows))]
    for band, axes in enumerate(figure.subplots(bands, 1, squeeze=False)[:, 0]):
        columns = range(band * per_band, min(layers, (band + 1) * per_band))
        for place, (contender, kind) in zip(places, rows, strict=True):
            for layer in columns:
                if data.shape.widths[layer].keeps(kind):  # else the model had none before
                    kept = 1 - contender.architecture.site_ratio(data.shape, Site(layer, kind))
                    _cell(axes, layer, place, kept)
        axes.set_xlim(columns.start - 0.5, columns.start + per_band - 0.5)
        axes.set_ylim(places[-1] + (0.55 if bands == 1 else 1.0), -0.55)  # a gap between bands
        labels = [f"{c.name} {'MLP' if kind is Kind.MLP else 'attention'}" for c, kind in rows]
        axes.set_yticks(places, labels)
        axes.set_xticks(columns, [str(layer) for layer in columns])
        axes.tick_params(length=0, labelsize=7.5, labeltop=True, labelbottom=False)
        for tick, (contender, _) in zip(axes.get_yticklabels(), rows, strict=True):
            tick.set_fontweight("bold" if contender.name == "winner" else "normal")
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.annotate(
            "layer",
            (0, 1),
            (-3.5, 3.5),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="right",
            va="baseline",
            fontsize=7.5,
            color="#5f6368",
        )


def _cell(axes: Axes, layer: int, place: float, kept: float) -> None:
    # The palest tenth of viridis is glaring: an empty site is a light green-yellow instead.
    colour = matplotlib.colormaps["viridis_r"](0.08 + 0.87 * kept)
    red, green, blue, _ = colour
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.52
    axes.add_patch(
        matplotlib.patches.Rectangle(
            (layer - 0.5, place - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=1
        )
    )
    axes.text(
        layer,
        place,
        f"{100 * kept:.0f}",
        ha="center",
        va="center_baseline",
        fontsize=7,
        color="white" if dark else "#202124",
    )


def draw_tradeoff(figure: FigureBase, data: ReportData, text: str) -> None:
    """Overall ratio against perplexity, logarithmic: all pairs, finalists and contenders."""
    axes = figure.subplots()

    def points(measured: Sequence[MeasuredPoint]) -> tuple[list[float], list[float]]:
        finite = [m for m in measured if math.isfinite(m.log_ppl.get(text, math.inf))]
        finite.sort(key=lambda m: m.overall_ratio)
        return [100 * m.overall_ratio for m in finite], [math.exp(m.log_ppl[text]) for m in finite]

    named = {name: _of_design(data, name) for name in ("dense", "uniform", "simple", "front")}
    named["winner"] = _winner(data)
    taken = {id(m) for group in named.values() for m in group}
    pairs = points([m for m in data.pairs if id(m) not in taken and m.design not in named])
    finalists = points([m for m in data.finalists if id(m) not in taken and m.design not in named])
    axes.scatter(*pairs, s=12, color=COLOURS["pairs"], label="pairs", linewidths=0)
    axes.scatter(*finalists, s=18, color=COLOURS["finalists"], label="finalists", linewidths=0)
    for name, group in named.items():
        ratios, ppl = points(group)
        if not ratios:
            continue
        axes.plot(
            ratios,
            ppl,
            linewidth=0.9,
            linestyle="-" if len(ratios) > 1 else "none",
            marker=MARKS[name],
            markersize={"winner": 12, "front": 5}.get(name, 6.5),
            color=COLOURS[name],
            markeredgecolor="white",
            markeredgewidth=0.7,
            label=name,
            zorder=4 if name == "winner" else 3,
        )
    axes.set_yscale("log")
    label_perplexity(axes, text)
    axes.legend(loc="upper left")


def label_perplexity(axes: Axes, text: str) -> None:
    """Ticks, labels and title of perplexity, on a log axis, against the overall ratio."""
    round_log_ticks(axes)
    axes.set_title(text)
    axes.set_xlabel("overall ratio, % of decoder-layer parameters removed")
    axes.set_ylabel("perplexity, selection part (log axis)")


def round_log_ticks(axes: Axes) -> None:
    """Ticks of a logarithmic y axis at round numbers, written out."""
    axes.yaxis.set_major_locator(FixedLocator(log_ticks(*axes.get_ylim())))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers in [low, high], at least three where the range allows, denser if it is narrow."""
    for steps in ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**power for power in powers for step in steps]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) >= 3:
            return inside
    return [float(tick) for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]


def draw_forecast(figure: FigureBase, data: ReportData, text: str) -> None:
    """Forecast against measured log perplexity, with the identity line."""
    axes = figure.subplots()
    winner = data.winner.architecture.id
    finalists = [m for m in data.finalists if has_forecast(m, text) and m.design not in MARKS]
    front = [m for m in data.finalists if has_forecast(m, text) and m.design == "front"]
    pairs = [m for m in data.pairs if has_forecast(m, text)]
    hollow = {"color": "white", "edgecolors": COLOURS["front"], "linewidths": 1.1}
    groups: list[tuple[str, list[MeasuredPoint], dict[str, Any]]] = [
        ("training pairs", [m for m in pairs if not m.held_out], {"s": 12, "color": COLOURS["pairs"]}),
        ("held-out pairs", [m for m in pairs if m.held_out], {"s": 20, "color": COLOURS["held out"]}),
        (
            "finalists",
            [m for m in finalists if m.architecture != winner],
            {"s": 24, "color": COLOURS["finalists"], "marker": "D"},
        ),
        ("front", front, {"s": 24, "marker": "D", **hollow}),
        (
            "winner",
            [m for m in finalists if m.architecture == winner],
            {"s": 110, "color": COLOURS["winner"], "marker": "*"},
        ),
    ]
    for label, group, style in groups:
        if group:
            measured = [m.log_ppl[text] for m in group]
            forecast = [(m.forecast_log_ppl or {})[text] for m in group]
            all_styles: dict[str, Any] = {"edgecolors": "white", "linewidths": 0.5} | style
            axes.scatter(measured, forecast, label=label, **all_styles)
    ends = (min(axes.get_xlim()[0], axes.get_ylim()[0]), max(axes.get_xlim()[1], axes.get_ylim()[1]))
    axes.plot(ends, ends, color="#80868b", linewidth=0.9, zorder=1)
    axes.set_xlim(ends)
    axes.set_ylim(ends)
    axes.set_aspect("equal")
    errors = data.predictor.get(LOG_PPL.of(text).key, {})
    quality = errors.get("r2", math.nan)
    axes.set_title(text + (f": R² {quality:.2f} on held-out pairs" if math.isfinite(quality) else ""))
    axes.set_xlabel("measured log perplexity, selection part")
    axes.set_ylabel("forecast log perplexity")
    axes.legend(loc="upper left")


def draw_search(figure: FigureBase, data: ReportData) -> None:
    """The best objective of a round so far, by trial; those before the first finite one are left out."""
    axes = figure.subplots()
    trials = [index for index, value in enumerate(data.history) if math.isfinite(value)]
    values = [data.history[index] for index in trials]
    axes.step([t + 1 for t in trials], values, where="post", color=COLOURS["finalists"], linewidth=1.4)
    axes.annotate(
        f"{values[-1]:.3f}", (trials[-1] + 1, values[-1]), (0, 6), textcoords="offset points", ha="right"
    )
    axes.set_xlabel("trial")
    axes.set_ylabel("best forecast of the round so far")
    axes.margins(x=0.01)


def draw_recovery(figure: FigureBase, data: ReportData) -> None:
    """The objective by tokens of training, a line a contender, its best point ringed."""
    axes = figure.subplots()
    for name, curve in data.curves.items():
        points = [(tokens / 1e6, value) for tokens, value in curve.objective if math.isfinite(value)]
        if not points:
            continue
        colour = COLOURS[WINNER if name == RECOVERED else name.partition(",")[0]]
        axes.plot(
            *zip(*points, strict=True), color=colour, linewidth=1.4, marker="o", markersize=3, label=name
        )
        best = min(points, key=lambda point: point[1])
        axes.plot(*best, marker="o", markersize=8, markerfacecolor="none", markeredgecolor=colour)
        axes.annotate(f"{best[1]:.3f}", best, (0, -12), textcoords="offset points", ha="center", color=colour)
    axes.set_xlabel("million tokens of training")
    axes.set_ylabel("objective, selection part")
    axes.margins(y=0.15)
    axes.legend()


def _of_design(data: ReportData, design: str) -> list[MeasuredPoint]:
    """The finalists of that design, or else the pairs: never both, they may rest on other windows."""
    finalists = [m for m in data.finalists if m.design == design]
    return finalists or [m for m in data.pairs if m.design == design]


def _winner(data: ReportData) -> list[MeasuredPoint]:
    winner = data.winner.architecture.id
    everything = (*data.finalists, *data.pairs)
    return [m for m in everything if m.architecture == winner][:1]
