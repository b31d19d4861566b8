"""How narrowing is drawn: why each site has its class, the widths that remain, and the winner's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.ticker import MaxNLocator

from stages.architecture import Kind, ModelShape, Site
from stages.export.report.charts import COLOURS
from stages.export.report.data import ReportData
from stages.search.narrowed_space import NarrowedSite

CLASS_COLOURS = {"sensitive": "#CC79A7", "other": "#a9b1ba", "insensitive": "#56B4E9", "exempt": "#eceff1"}
DARK = {"sensitive": "#8a3a66", "other": "#5f6b76", "insensitive": "#1f78ab", "exempt": "#a9b1ba"}
SHARE_LABELS = {"damage": "share of damage, %", "importance": "share of gain, %"}
SIZE = (10.4, 7.0)  # inches
_TALLEST = 4  # times the least sensitive share: what is above is cut off, with its number
_FEW = 12  # widths that are drawn one by one


def boundaries(sites: Mapping[str, NarrowedSite]) -> dict[str, float]:
    """The share from which sites are sensitive, and up to which insensitive; as far as there are any."""
    of = {label: [s.importance for s in sites.values() if s.label == label] for label in CLASS_COLOURS}
    found = {"sensitive": min(of["sensitive"], default=math.nan)}
    found["insensitive"] = max(of["insensitive"], default=math.nan)
    return {label: share for label, share in found.items() if math.isfinite(share)}


def ratio_of(shape: ModelShape, site: Site, width: Sequence[int]) -> float:
    """The ratio of a site that keeps a width, (channels,) or (kv_groups, heads_per_group)."""
    count = shape.attention_parameters if site.kind is Kind.ATTENTION else shape.mlp_parameters
    return 1 - count(*width) / shape.dense_parameters(site)


def draw_narrowing(figure: FigureBase, data: ReportData) -> None:
    """Two strips a kind of site, layer by layer: the share that decides, and the ratios that remain."""
    strips = figure.subplots(4, 1, sharex=True, height_ratios=(3, 4, 3, 4))
    prunable = [s.importance for s in data.narrowed.values() if s.label != "exempt"]
    top = 1.1 * max(prunable, default=0.0)
    limit = boundaries(data.narrowed).get("sensitive", 0.0)
    top = min(top, _TALLEST * limit) if limit > 0 else top
    for kind, above, below in zip(Kind, strips[::2], strips[1::2], strict=True):
        sites = {s.layer: data.narrowed[str(s)] for s in data.shape.sites() if s.kind is kind}
        _shares(above, sites, data, 100 * top if top > 0 else 1.0)
        _ratios(below, sites, data, kind)
        above.set_title("MLP" if kind is Kind.MLP else "attention", pad=11)  # above numbers of cut bars
    strips[-1].set_xlabel("layer")
    strips[-1].xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True))
    strips[-1].set_xlim(-0.7, data.shape.layers - 0.3)
    figure.align_ylabels(strips)
    figure.legend(handles=_keys(data), loc="outside lower center", ncols=6, columnspacing=1.6)


def _shares(axes: Axes, sites: Mapping[int, NarrowedSite], data: ReportData, top: float) -> None:
    """Bars of what the ranking goes by, with the shares at which classes begin."""
    shares = {layer: 100 * site.importance for layer, site in sites.items()}
    colours = [CLASS_COLOURS[site.label] for site in sites.values()]
    axes.bar(list(shares), list(shares.values()), color=colours, width=0.8)
    for label, share in boundaries(data.narrowed).items():
        axes.axhline(100 * share, color=DARK[label], linewidth=0.8, linestyle=(0, (4, 3)), zorder=3)
    for layer, share in shares.items():
        if share > top and sites[layer].label != "exempt":
            axes.text(layer, top, f"{share:.0f}", ha="center", va="bottom", fontsize=6.5, color="#3c4043")
    axes.set_ylim(0, top)
    axes.set_ylabel(SHARE_LABELS[data.narrowed_by])
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    _background(axes, sites)


def _ratios(axes: Axes, sites: Mapping[int, NarrowedSite], data: ReportData, kind: Kind) -> None:
    """Bars from the mildest to the strongest ratio that remains, a line a width, and the winner's ratio."""
    for layer, site in sites.items():
        if site.label == "exempt":
            continue
        low, high = (100 * end for end in site.interval)
        axes.bar(
            layer, high - low, bottom=low, width=0.8, color=CLASS_COLOURS[site.label], alpha=0.4, linewidth=0
        )
        if len(site.widths) <= _FEW:
            left = [100 * ratio_of(data.shape, site.site, width) for width in site.widths]
            axes.hlines(left, layer - 0.4, layer + 0.4, color=DARK[site.label], linewidth=1.1)
    architecture = data.winner.architecture
    chosen = [100 * architecture.site_ratio(data.shape, Site(layer, kind)) for layer in sites]
    axes.scatter(
        list(sites), chosen, s=26, marker="D", color=COLOURS["winner"], edgecolors="white", linewidths=0.7,
        zorder=4, clip_on=False,
    )  # fmt: skip
    axes.set_ylim(-4, 104)
    axes.set_yticks([0, 25, 50, 75, 100])
    axes.set_ylabel("ratio, %")
    _background(axes, sites)


def _background(axes: Axes, sites: Mapping[int, NarrowedSite]) -> None:
    axes.grid(False, axis="x")
    for layer, site in sites.items():
        if site.label == "exempt":
            axes.axvspan(layer - 0.5, layer + 0.5, color=CLASS_COLOURS["exempt"], linewidth=0, zorder=0)


def _keys(data: ReportData) -> list[Any]:
    present = {site.label for site in data.narrowed.values()}
    words = {"exempt": "exempt: stays dense"}
    keys: list[Any] = [
        matplotlib.patches.Patch(color=colour, label=words.get(label, label))
        for label, colour in CLASS_COLOURS.items()
        if label in present
    ]
    line = matplotlib.lines.Line2D
    keys.append(
        line([], [], color="#5f6368", linewidth=0.8, linestyle=(0, (4, 3)), label="where a class begins")
    )
    keys.append(
        line([], [], linestyle="none", marker="D", markersize=5, color=COLOURS["winner"], label="winner")
    )
    return keys
