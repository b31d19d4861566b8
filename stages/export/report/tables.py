"""The report's tables of narrowing, front and predictor, as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stages.architecture import Kind, Width
from stages.export.report.data import ReportData
from stages.export.report.verdict import percent, signed_percent
from stages.export.results.final_table import SearchStep
from stages.metrics.registered import metric_of
from stages.train_predictor.results import Judged

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


def judged_rows(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """A row a predictor, or a choice of features, and target."""
    keys = ("r2", "rmse", "spearman", "spearman_near_budget")
    return [
        {
            "target": row.target,
            "what": row.predictor,
            "features": "" if row.features is None else row.features,
            "figures": [figure(row.errors, key) for key in keys],
            "recall": figure(row.errors, "top_recall", ".0%").replace("%", " %"),
        }
        for row in judged
    ]


def round_rows(data: ReportData) -> list[dict[str, Any]]:
    """A row a round of the search: how far forecasts were off on what they had led to."""
    targets = [key.removeprefix("rmse.") for key in data.trust.rounds[0] if key.startswith("rmse.")]
    return [
        {
            "round": figure(row, "round", ".0f"),
            "measured": figure(row, "measured", ".0f"),
            "best_trial": f"{figure(row, 'best_trial', ',.0f')} of {figure(row, 'trials', ',.0f')}",
            "gain": figure(row, "gain", ".4f"),
            "spearman": figure(row, "spearman.objective"),
            "errors": [
                (target, figure(row, f"bias.{target}", "+.3f"), figure(row, f"rmse.{target}"))
                for target in targets
            ],
        }
        for row in data.trust.rounds
    ]


def step_rows(data: ReportData) -> list[dict[str, Any]]:
    """A row a step of the search: what it would have ended with there, and what that is worth."""
    return [
        {
            "name": step.name,
            "id": step.architecture,
            "evaluations": f"{step.evaluations:,}",
            "objective": f"{step.objective:.4f}",
            "texts": [(format(v, ",.2f"), _step_change(step, key)) for key, v in step.metrics.items()],
        }
        for step in data.steps
    ]


def _step_change(step: SearchStep, key: str) -> str:
    if key not in step.change_percent:
        return ""
    error = step.change_errors.get(key)
    return signed_percent(step.change_percent[key]) + ("" if error is None else f" ± {error:.1f}")


def search_words(data: ReportData) -> list[str]:
    """What pairs and rounds bought, in sentences: on the text that chose, and on text that did not."""
    if len(data.steps) < 2:
        return []
    first, last = data.steps[0], data.steps[-1]
    than = "the damage curves alone (one-shot)" if first.evaluations == 0 else f"{first.name}"
    more = last.evaluations - first.evaluations
    if last.architecture == first.architecture:
        return [f"{more} measured architectures bought nothing: the best of them is that of {than}."]
    found = [
        f"{more} measured architectures lowered the objective on the selection part from "
        f"{first.objective:.4f}, {than}, to {last.objective:.4f}."
    ]
    judged = {}
    for key in last.change_percent:
        error = last.change_errors.get(key)
        change = last.change_percent[key]
        judged[key] = None if error is None else 0 if abs(change) <= 2 * error else 1 if change < 0 else -1
    changes = ", ".join(f"{_step_change(last, k)} on {metric_of(k).corpus}" for k in last.change_percent)
    told = f"On the report part, which chose nothing, perplexity changed by {changes}"
    if None in judged.values():
        return [*found, f"{told}; one window has no error, so nothing can be said of it."]
    if all(value == 0 for value in judged.values()):
        return [*found, f"{told}: within two standard errors of nothing."]
    better, worse = ([k for k, v in judged.items() if v == sign] for sign in (1, -1))
    parts = [f"a gain on {' and '.join(metric_of(k).corpus for k in better)}"] if better else []
    parts += [f"a loss on {' and '.join(metric_of(k).corpus for k in worse)}"] if worse else []
    return [*found, f"{told}: {', '.join(parts)}."]


def explained_rows(data: ReportData) -> list[dict[str, Any]]:
    """A row a site: what its cut adds to the forecast, part by part, and the prices around its width."""
    return [
        {
            "site": f"{one.site.layer} {'MLP' if one.site.kind is Kind.MLP else 'attention'}",
            "kept": _width(one.kept),
            "ratio": percent(one.ratio, 0),
            "parts": [_signed(value) for value in (one.rise, one.curve, one.pairs, one.trees)],
            "prices": [UNKNOWN if p is None else _signed(p) for p in (one.last_price, one.next_price)],
        }
        for one in data.explained
    ]


def _signed(value: float) -> str:
    return f"{value:.4f}".replace("-", "−")


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
