"""The report's tables of narrowing, front and predictor, as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stages.architecture import Kind, Width
from stages.export.report.data import ReportData
from stages.export.report.verdict import percent
from stages.metrics.registered import metric_of

LIMITED = {
    "size_bytes": ("weights, MB", 1e-6),
    "prefill_ms": ("prompt, ms", 1.0),
    "decode_ms": ("a token after it, ms", 1.0),
}
UNKNOWN = "–"
LEARNED = 0.2  # an R² below which a forecast is hardly better than the mean of all pairs


def figure(values: Mapping[str, float], key: str, pattern: str = ".3f") -> str:
    """A value as the tables print it; unknown where it is missing or not finite."""
    value = values.get(key, math.nan)
    return format(value, pattern).replace("-", "−") if math.isfinite(value) else UNKNOWN


def predictor_rows(data: ReportData) -> list[dict[str, Any]]:
    """A row a target: errors on held-out pairs and across folds, and the forecast interval's calibration."""
    rows = []
    for target, errors in data.predictor.items():
        validated = data.trust.cross_validated.get(target, {})
        near, top = (figure(validated, key, ",.0f") for key in ("pairs_near_budget", "top"))
        held_out = errors.get("held_out_pairs", math.nan)
        inside = errors.get("coverage", math.nan) * held_out
        rows.append(
            {
                "target": target,
                "scale": metric_of(target).unit,  # R² means nothing without it
                **{key: figure(errors, key) for key in ("r2", "spearman", "mae", "rmse")},
                "held_out_pairs": figure(errors, "held_out_pairs", ",.0f"),
                "half_width": figure(errors, "half_width"),
                "covered": f"{inside:.0f} of {held_out:.0f}" if math.isfinite(inside) else UNKNOWN,
                "cross_r2": figure(validated, "r2"),
                "cross_spearman": figure(validated, "spearman"),
                "pairs": figure(validated, "pairs", ",.0f"),
                "near": figure(validated, "spearman_near_budget"),
                "near_pairs": near,
                "recall": figure(validated, "top_recall", ".0%").replace("%", " %"),
                "top": top,
            }
        )
    return rows


def unlearned(data: ReportData) -> list[str]:
    """Targets that are hardly forecast at all: their R² across folds is below `LEARNED`."""
    return [
        target
        for target, errors in data.trust.cross_validated.items()
        if errors.get("r2", math.inf) < LEARNED
    ]


def ablation_rows(data: ReportData) -> list[dict[str, Any]]:
    """A row a choice of features and target; the first of a target is of all features."""
    keys = ("r2", "rmse", "spearman", "spearman_near_budget")
    return [
        {
            "target": row.target,
            "what": row.predictor,
            "features": row.features,
            "figures": [figure(row.errors, key) for key in keys],
            "recall": figure(row.errors, "top_recall", ".0%").replace("%", " %"),
        }
        for row in data.trust.ablation
    ]


def round_rows(data: ReportData) -> list[dict[str, Any]]:
    """A row a round of the search: how far forecasts were off on what they had led to."""
    targets = [key.removeprefix("rmse.") for key in data.trust.rounds[0] if key.startswith("rmse.")]
    return [
        {
            "round": figure(row, "round", ".0f"),
            "measured": figure(row, "measured", ".0f"),
            "spearman": figure(row, "spearman.objective"),
            "errors": [
                (target, figure(row, f"bias.{target}", "+.3f"), figure(row, f"rmse.{target}"))
                for target in targets
            ],
        }
        for row in data.trust.rounds
    ]


def narrowing_rows(data: ReportData) -> list[dict[str, Any]]:
    """A row a site: class and rank, the ratios and widths that remain, and the winner's width."""
    prunable = [name for name, site in data.narrowed.items() if site.label != "exempt"]
    ranked = sorted(prunable, key=lambda name: -data.narrowed[name].importance)
    rank = {name: number for number, name in enumerate(ranked, 1)}
    rows = []
    for place in data.shape.sites():
        site, width = data.narrowed.get(str(place)), data.winner.architecture.widths[place.layer]
        if site is None:
            continue
        rows.append(
            {
                "site": f"{place.layer} {'MLP' if place.kind is Kind.MLP else 'attention'}",
                "label": site.label,
                "share": percent(site.importance),
                "rank": rank.get(str(place), UNKNOWN),
                "ratios": " to ".join(percent(end, 0) for end in site.interval) if site.widths else UNKNOWN,
                "widths": _widths(site.widths) if site.widths else "dense",
                "winner": _width(width.of(place.kind)),
                "winner_ratio": percent(data.winner.architecture.site_ratio(data.shape, place)),
            }
        )
    return rows


def _widths(widths: Sequence[Width]) -> str:
    """All of them where they are few, else the ends and how many."""
    if len(widths) <= 12:
        return ", ".join(_width(width) for width in widths)
    return f"{_width(widths[0])} … {_width(widths[-1])} ({len(widths)} widths)"


def _width(width: Width) -> str:
    """ "1,024" channels, "3 × 2" KV groups × heads a group, or "gone"."""
    return " × ".join(f"{number:,}" for number in width) if all(width) else "gone"


def front_rows(data: ReportData) -> list[dict[str, Any]]:
    """A row an architecture of the front's table."""
    return [
        {
            "name": point.name,
            "id": point.architecture,
            "ratio": percent(point.overall_ratio),
            "parameters": f"{point.parameters / 1e6:,.1f} M",
            "texts": [
                (figure(point.forecast_ppl, text, ",.2f"), figure(point.ppl, text, ",.2f"))
                for text in data.texts
            ],
            "takes": [f"{value * LIMITED[name][1]:,.2f}" for name, value in point.takes.items()],
            "dominated": point.dominated,
        }
        for point in data.front
    ]


def front_limits(data: ReportData) -> list[str]:
    """What the columns of `takes` are of."""
    return [LIMITED[name][0] for name in data.front[0].takes]
