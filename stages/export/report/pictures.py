"""The report's pictures: drawn with matplotlib, byte for byte the same from the same data.

A picture is one or more panels: the report lays them out side by side, or one below the other
on a phone; a PNG shows them in one row.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, FigureBase

from stages.export.report import alternatives_chart, charts, front_chart, narrowing_chart, search_charts
from stages.export.report.data import MeasuredPoint, ReportData
from stages.metrics.registered import metric_of
from stages.search.outcome import FRONT

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "prunecast",  # else the ids in an SVG are random
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same everywhere
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.edgecolor": "#9aa0a6",
    "axes.labelcolor": "#3c4043",
    "xtick.color": "#5f6368",
    "ytick.color": "#5f6368",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e8eaed",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
PANEL = (5.2, 4.0)  # inches; about a phone's width at the font size above
NARROW = 6.5  # inches; a heat map of few layers is not blown up to the page's width


@dataclass(frozen=True)
class Panel:
    """One drawing with its alternative text; `size` is (width, height) in inches."""

    alt: str
    size: tuple[float, float]
    draw: Callable[[FigureBase], None]

    def svg(self) -> str:
        """The drawing as SVG, without metadata."""
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=self.size, layout="constrained")
            self.draw(figure)
            buffer = io.StringIO()
            nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            figure.savefig(buffer, format="svg", metadata=nothing)
        text = buffer.getvalue()
        return text[text.index("<svg") :]  # without the DOCTYPE, which names a file on the web


@dataclass(frozen=True)
class Picture:
    """Panels that are read alike. `wide` ones scroll on a phone rather than shrink."""

    name: str
    caption: str
    panels: tuple[Panel, ...]
    wide: bool = False

    def png(self) -> bytes:
        """The panels in one row."""
        with matplotlib.rc_context(STYLE):
            widths = [panel.size[0] for panel in self.panels]
            height = max(panel.size[1] for panel in self.panels)
            figure = Figure(figsize=(sum(widths), height), layout="constrained", dpi=144)
            FigureCanvasAgg(figure)
            parts = figure.subfigures(1, len(self.panels), squeeze=False, width_ratios=widths)[0]
            for part, panel in zip(parts, self.panels, strict=True):
                panel.draw(part)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()


def pictures(data: ReportData) -> dict[str, Picture]:
    """The pictures for which there is data, by name, in the order of the report."""
    makers = (
        _alternatives,
        _widths,
        _explained,
        _tradeoff,
        _front,
        _forecast,
        _narrowing,
        _course,
        _search,
        _recovery,
    )
    drawn = [make(data) for make in makers]
    return {picture.name: picture for picture in drawn if picture.panels}


def write_pictures(data: ReportData, folder: Path) -> list[Path]:
    """Write each picture as NAME.png into `folder`, which is made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, picture in pictures(data).items():
        path = folder / f"{name}.png"
        path.write_bytes(picture.png())
        paths.append(path)
    return paths


def _widths(data: ReportData) -> Picture:
    compared = [c for name in charts.HEAT_MAP_ORDER if (c := data.contender(name))]
    names = " and ".join(c.name for c in compared[1:])
    size = charts.heat_map_size(data.shape.layers, len(compared))
    alt = f"Heat map of the percentage that each of {2 * data.shape.layers} sites keeps in the winner" + (
        f", with {names} for comparison" if names else ""
    )
    return Picture(
        "widths",
        "Each cell is a site, its number the percentage of the site's parameters that is kept: "
        "the darker, the more is left; 0 means that the sublayer is gone.",
        (Panel(alt, size, lambda figure: charts.draw_widths(figure, data, compared)),),
        wide=size[0] > NARROW,
    )


def _tradeoff(data: ReportData) -> Picture:
    def panel(text: str) -> Panel:
        alt = f"Overall ratio against perplexity on {text} for every measured architecture"
        return Panel(alt, PANEL, lambda figure: charts.draw_tradeoff(figure, data, text))

    measured = [
        t for t in data.texts if any(math.isfinite(m.log_ppl.get(t, math.inf)) for m in _all_measured(data))
    ]
    return Picture(
        "tradeoff",
        "Lower is better at the same overall ratio. All values are of the selection part, so they differ "
        "from the table's, which are of the report part; the pairs may rest on fewer windows than the "
        "others (see Protocol).",
        tuple(panel(text) for text in measured),
    )


def _forecast(data: ReportData) -> Picture:
    def panel(text: str) -> Panel:
        alt = f"Forecast against measured log perplexity on {text}, training and held-out pairs apart"
        return Panel(alt, PANEL, lambda figure: charts.draw_forecast(figure, data, text))

    forecast = [t for t in data.texts if any(charts.has_forecast(m, t) for m in _all_measured(data))]
    return Picture(
        "forecast",
        "On the grey line the forecast is exact. Judge by the held-out pairs: training pairs lie close by "
        "construction, and finalists measured on more text than the pairs may lie off the line together.",
        tuple(panel(text) for text in forecast),
    )


def _narrowing(data: ReportData) -> Picture:
    alt = (
        "For each layer's attention and MLP: what decided its class, the ratios that narrowing left, and "
        "the winner's ratio"
    )
    went_by = {
        "damage": "how much the forecast rises, a parameter removed, when 30 % of the site alone is cut, as "
        "a share of all sites' rises",
        "importance": "the site's share of the predictor's gain",
    }[data.narrowed_by]
    return Picture(
        "narrowing",
        f"Above, why a site has its class: {went_by} (bars that are cut off carry their number). Below, the "
        "ratios that were left to the search there: a line a width, or a bar where widths are many. The "
        "ranking is that of the last round: a winner that an earlier one found may lie outside.",
        (Panel(alt, narrowing_chart.SIZE, lambda figure: narrowing_chart.draw_narrowing(figure, data)),)
        if data.narrowed
        else (),
        wide=True,
    )


def _front(data: ReportData) -> Picture:
    def panel(text: str) -> Panel:
        alt = f"Measured and forecast perplexity on {text} of the best architecture at each overall ratio"
        return Panel(alt, PANEL, lambda figure: front_chart.draw_front(figure, data, text))

    asked = any(point.name == FRONT for point in data.front)
    texts = [t for t in data.texts if any(math.isfinite(p.ppl.get(t, math.inf)) for p in data.front)]
    return Picture(
        "front",
        "Each mark is measured, on the selection part like the finalists; the dash is what was forecast of "
        "it before. The line joins what is not dominated: no other mark removes as much at a perplexity "
        "that is on no text higher.",
        tuple(panel(text) for text in texts) if asked else (),
    )


def _alternatives(data: ReportData) -> Picture:
    keys = list(dict.fromkeys(key for one in data.alternatives for key in one.metrics))

    def sizes(key: str) -> Panel:
        alt = f"Size of the weights against {metric_of(key).label}, dense and pruned in each type"
        return Panel(alt, PANEL, lambda figure: alternatives_chart.draw_sizes(figure, data, key))

    def speeds(key: str) -> Panel:
        alt = f"Tokens a second against {metric_of(key).label}, dense and pruned in each type"
        return Panel(alt, PANEL, lambda figure: alternatives_chart.draw_speeds(figure, data, key))

    with_speeds = keys if alternatives_chart.has_speeds(data) else []
    return Picture(
        "alternatives",
        "Down and to the left is better in size. Hollow: another one is no larger and on no text worse. "
        "Perplexity is of few windows of the report part, with weights rounded as llama.cpp's files hold "
        "them. Sizes are of the weights: a file has its vocabulary beside.",
        (*map(sizes, keys), *map(speeds, with_speeds)),
    )


def _explained(data: ReportData) -> Picture:
    panel = Panel(
        "For each layer's attention and MLP: what its cut adds to the forecast, and what the next would cost",
        search_charts.EXPLAINED_SIZE,
        lambda figure: search_charts.draw_explained(figure, data),
    )
    return Picture(
        "explained",
        "Above, what each site's cut adds to the forecast objective of the winner; all bars together are "
        "what it lies above the dense model. Below, what one width less would cost, a million parameters: a "
        "search at a budget cuts where that is cheap, until it is dear everywhere (bars that are cut off "
        "carry their multiple of the median).",
        (panel,) if data.explained else (),
        wide=True,
    )


def _course(data: ReportData) -> Picture:
    panel = Panel(
        f"Measured objective of the budget's architectures among {len(data.course)} measured ones, the best "
        "so far, and that of the one-shot rule",
        (2 * PANEL[0], 3.4),
        lambda figure: search_charts.draw_course(figure, data),
    )
    return Picture(
        "course",
        "Each mark is one measured architecture of the budget, on the selection part as the pairs are; "
        "lower is better. The dashed line is what the damage curves alone would have chosen, with no pair "
        "measured.",
        (panel,) if any(math.isfinite(e.best) for e in data.course) else (),
    )


def _search(data: ReportData) -> Picture:
    finite = [value for value in data.history if math.isfinite(value)]
    panel = Panel(
        f"Best forecast objective so far over {len(data.history)} trials of the search",
        (2 * PANEL[0], 3.0),
        lambda figure: charts.draw_search(figure, data),
    )
    return Picture(
        "search",
        "The best forecast objective found so far, lower is better. It starts anew with each round, whose "
        "predictor has learnt what the rounds before measured; a round whose curve is still falling at its "
        "end asks for more trials.",
        (panel,) if finite else (),
    )


def _recovery(data: ReportData) -> Picture:
    names = " and ".join(data.curves)
    panel = Panel(
        f"The search's objective on the selection part over the tokens of training, of {names}",
        (2 * PANEL[0], 3.4),
        lambda figure: charts.draw_recovery(figure, data),
    )
    return Picture(
        "recovery",
        "The search's objective on the selection part, lower is better, before the training and on the way; "
        "ringed is the checkpoint that was taken. A curve that still falls at its end asks for more text.",
        (panel,) if any(curve.objective for curve in data.curves.values()) else (),
    )


def _all_measured(data: ReportData) -> list[MeasuredPoint]:
    return [*data.pairs, *data.finalists]
