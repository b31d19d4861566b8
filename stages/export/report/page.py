"""The pipeline's final report: one HTML file that opens without a network and defends the choice."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stages.architecture import Kind, Site
from stages.config.params import PARTS
from stages.export.report import alternatives, glossary, proof_tables, tables
from stages.export.report.charts import COLOURS
from stages.export.report.data import ReportData, change_percent, inseparable, judge
from stages.export.report.pictures import Panel, Picture, pictures
from stages.export.report.tables import LIMITED, UNKNOWN
from stages.export.report.verdict import percent, signed_percent, verdict
from stages.export.results.final_table import PRUNED_BASELINES, Contender, Taken
from stages.metrics.registered import metric_of

LIMITS_NOTE = (
    "Forecast: the sum of what every site of its width takes, from the latency table of the sample stage. "
    "Measured: the exported folder in PyTorch and the dense model, in turn; medians. As shares of the dense "
    "model, what the machine has become slower or faster by since the table was measured cancels out. "
    "Uniform and simple are held just above the limits, the winner below."
)


@dataclass(frozen=True)
class Change:
    """The winner's relative change against one baseline, in words and figures."""

    baseline: str
    figure: str
    outcome: str  # "better", "worse", "level", "open" or "unknown"


@dataclass(frozen=True)
class TableRow:
    """One metric of the table: a cell (value, standard error, best?) for each contender."""

    label: str
    better: str
    cells: tuple[tuple[str, str, bool], ...]
    changes: tuple[Change, ...]


def build_report(data: ReportData) -> str:
    """The whole report as HTML: styles and pictures are inside, no script, nothing is fetched.

    Raises:
        ValueError: no contender is named "winner", or a metric's better direction is unknown.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_keep_together,
    )
    page = environment.get_template("report.html.j2").render(
        data=data,
        colours=COLOURS,
        contenders=winner_first(data),
        verdict=verdict(data),
        rows=[_row(data, name) for name in data.metric_names],
        question_tables=_question_tables(data),
        baselines=[name for name in PRUNED_BASELINES if data.contender(name)],
        pictures={name: _for_html(picture) for name, picture in pictures(data).items()},
        widths=_winner_widths(data),
        corpora=_corpora(data),
        tables=tables,
        alternatives=alternatives,
        parts=PARTS,
        taken=[_taken(data, t) for t in data.taken],
        limits_note=LIMITS_NOTE,
        proof_tables=proof_tables.proof_tables(data.proof),
        proof_columns=proof_tables.COLUMNS,
        proof_ideal=proof_tables.IDEAL,
        proof_agreement=proof_tables.AGREEMENT,
        held_out=sum(m.held_out for m in data.pairs),
        percent=percent,
        millions=millions,
        unknown=UNKNOWN,
        label=lambda key: metric_of(key).label,
        glossary=[(glossary.anchor(term), term, words) for term, words in glossary.TERMS.items()],
    )
    return glossary.linked(page)


def winner_first(data: ReportData) -> list[Contender]:
    """The contenders as the tables show them: what is exported, the winner, and then the others."""
    order = [data.exported.name, data.winner.name]
    return sorted(data.contenders, key=lambda c: order.index(c.name) if c.name in order else len(order))


def _keep_together(value: Any) -> Any:
    """No line break between a number and its unit."""
    return value.replace(" %", "\u00a0%") if isinstance(value, str) else value


def format_metric(metric: str, value: float | None) -> str:
    """A value as the table prints it; an error prints like its value."""
    if value is None or math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return metric_of(metric).format(value)


def millions(parameters: int) -> str:
    return f"{parameters / 1e6:,.1f} M"


def _row(data: ReportData, metric: str) -> TableRow:
    best = _best(data, metric)
    cells = []
    for c in winner_first(data):
        error = c.standard_errors.get(metric)
        shown = f"± {format_metric(metric, error)}" if error is not None and math.isfinite(error) else ""
        cells.append((format_metric(metric, c.metrics.get(metric)), shown, c.name in best))
    changes = tuple(_change(data, name, metric) for name in PRUNED_BASELINES if data.contender(name))
    better = "lower is better" if metric_of(metric).lower_is_better else "higher is better"
    return TableRow(metric_of(metric).label, better, tuple(cells), changes)


def _best(data: ReportData, metric: str) -> list[str]:
    """The pruned contenders with the best value; dense does not compete, nor do values of a coarse
    metric that separates none of them."""
    if metric_of(metric).coarse and inseparable(data, metric):
        return []
    known = {
        c.name: c.metrics[metric]
        for c in data.contenders
        if c.name != "dense" and math.isfinite(c.metrics.get(metric, math.nan))
    }
    best = min(known.values(), key=metric_of(metric).cost, default=None)
    return [name for name, value in known.items() if value == best]


def _change(data: ReportData, baseline: str, metric: str) -> Change:
    change = change_percent(data, baseline, metric)
    if change is None:
        return Change(baseline, UNKNOWN, "unknown")
    figure = signed_percent(change)
    error = data.change_errors.get(baseline, {}).get(metric)
    if error is not None and math.isfinite(error):
        figure += f" ± {error:.1f}"
    return Change(baseline, figure, judge(data, baseline, metric) or "unknown")


def _for_html(picture: Picture) -> dict[str, Any]:
    return {
        "caption": picture.caption,
        "wide": picture.wide,
        "panels": [_image(panel) for panel in picture.panels],
    }


def _image(panel: Panel) -> dict[str, Any]:
    """The picture as an <img>, not inline <svg>: the ids of several SVGs would clash in one document."""
    encoded = base64.b64encode(panel.svg().encode()).decode()
    width, height = (round(96 * inches) for inches in panel.size)
    return {
        "alt": panel.alt,
        "source": f"data:image/svg+xml;base64,{encoded}",
        "width": width,
        "height": height,
    }


def _winner_widths(data: ReportData) -> list[dict[str, Any]]:
    """What the winner keeps, layer by layer."""
    architecture, shape = data.winner.architecture, data.shape
    return [
        {
            "layer": layer,
            "attention": f"{width.kv_groups} × {width.heads_per_group}" if width.has_attention else "gone",
            "channels": f"{width.channels:,}" if width.has_mlp else "gone",
            "ratios": [
                percent(architecture.site_ratio(shape, Site(layer, kind)))
                if shape.widths[layer].keeps(kind)
                else UNKNOWN
                for kind in Kind
            ],
        }
        for layer, width in enumerate(architecture.widths)
    ]


def _taken(data: ReportData, row: Taken) -> dict[str, Any]:
    """A limit, and what contenders take of it, in a unit for people."""
    label, unit = LIMITED[row.name]

    def shown(values: Mapping[str, float], name: str) -> str:
        return f"{values[name] * unit:,.2f}" if name in values else UNKNOWN

    return {
        "label": label,
        "most": f"{row.most * unit:,.2f}",
        "forecast": [shown(row.forecast, c.name) for c in winner_first(data)],
        "measured": [shown(row.measured, name) for name in ("dense", "winner")],
        "error": signed_percent(row.error_percent),
        "share_error": UNKNOWN
        if row.share_error_percent is None
        else signed_percent(row.share_error_percent),
    }


def _question_tables(data: ReportData) -> list[dict[str, Any]]:
    """Accuracies by category and by subject, a table each, for every corpus and format."""
    tables: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for group in data.question_groups:
        cells = []
        for c in winner_first(data):
            error = group.standard_errors.get(c.name, math.nan)
            shown = f"± {percent(error)}" if math.isfinite(error) else ""
            cells.append((percent(group.accuracy[c.name]) if c.name in group.accuracy else UNKNOWN, shown))
        row = {"name": group.name.replace("_", " "), "questions": _plain(group.questions), "cells": cells}
        tables.setdefault((group.metric, group.kind), []).append(row)
    return [
        {"label": metric_of(metric).label, "kind": kind, "rows": rows}
        for (metric, kind), rows in tables.items()
    ]


def _corpora(data: ReportData) -> list[dict[str, Any]]:
    """Each corpus as text; a part that a corpus lacks shows as unknown."""
    rows = []
    for name, corpus in data.corpora.items():
        texts = {"source": corpus.source, "found": corpus.found, "used": corpus.used, "note": corpus.note}
        rows.append(
            {
                "name": name,
                **{key: _plain(value) if value != "" else UNKNOWN for key, value in texts.items()},
                "parts": [
                    _plain(corpus.parts[part].count) if part in corpus.parts else UNKNOWN for part in PARTS
                ],
            }
        )
    return rows


def _plain(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
