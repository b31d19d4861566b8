"""The study's tables and pictures, from its rows: python -m tests.benchmarks.study report"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from stages.metrics.perplexity import LOG_PPL, PPL
from stages.metrics.registered import metric_of
from tests.benchmarks.study import lines

RESULTS = Path(__file__).parent / "results"
COLOURS = [*(f"C{place}" for place in range(10)), "black", "navy", "goldenrod", "darkgreen"]
"""By the order of methods: more of them than matplotlib's own cycle tells apart."""
FIGURES = {
    "ppl.wikitext2": "WikiText-2",
    "ppl.ptb": "PTB",
    "ppl.wikitext2.again": "WikiText-2, repaired again",
    "ppl.ptb.again": "PTB, repaired again",
    "mmlu.letter.accuracy": "MMLU, five-shot by letter",
    "mmlu.accuracy": "MMLU, zero-shot by likelihood",
}


def write(results: Path) -> None:
    """Write tables.md and a picture a regime and overall ratio beside the rows; print the tables."""
    rows, finals = read(results)
    held_out = _lines(results, "forecasts")
    parts = [forecasts(held_out)] if held_out else []
    for regime, of_regime in rows.groupby("regime"):
        measured = finals.xs(regime, level="regime")
        assert isinstance(measured, pd.DataFrame)
        for ratio in sorted(of_regime["overall_ratio"].unique()):
            group = of_regime[of_regime["overall_ratio"] == ratio]
            parts.append(table(f"{regime}, overall ratio {100 * ratio:.4g} %", group, measured))
            picture(group, results / f"{regime}-{100 * ratio:.4g}.png")
    text = "\n\n".join(parts) + "\n"
    (results / "tables.md").write_text(text, encoding="utf-8")
    print(text)


def read(results: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The methods' rows, and the figures on test splits by regime and architecture.

    Raises:
        FileNotFoundError: the folder holds no rows.
    """
    found = {name: _lines(results, name) for name in ("rows", "finals")}
    if not found["rows"]:
        raise FileNotFoundError(f"{results} holds no rows-*.jsonl; run the study's `search` first")
    finals: dict[tuple[str, str], dict[str, float]] = {}
    for row in found["finals"]:
        errors = {f"se.{name}": value for name, value in row["standard_errors"].items()}
        finals.setdefault((row["regime"], row["architecture"]), {}).update(row["metrics"] | errors)
    index = pd.MultiIndex.from_tuples(list(finals), names=["regime", "architecture"])
    return pd.DataFrame(found["rows"]), pd.DataFrame(list(finals.values()), index=index)


def _lines(results: Path, name: str) -> list[dict[str, Any]]:
    return [line for path in sorted(results.glob(f"{name}-*.jsonl")) for line in lines.read(path)]


def table(title: str, rows: pd.DataFrame, finals: pd.DataFrame) -> str:
    """A Markdown table: a line a method and number of evaluations, the mean of its seeds.

    Perplexities with their range over seeds; accuracies with the standard error of one measurement.
    """
    figures = [name for name in FIGURES if name in finals.columns]
    made = [
        f"**{title}**\n",
        "| method | real evaluations | seeds | GPU seconds | "
        + " | ".join(FIGURES[name] for name in figures)
        + " | of simple |",
        "| --- " * (5 + len(figures)) + "|",
    ]
    means = {
        key: finals.reindex(group["architecture"])
        for key, group in rows.groupby(["method", "evaluations"], sort=False)
    }
    simple = next((values for (method, _), values in means.items() if method == "simple"), None)
    order = sorted(means, key=lambda key: float(means[key]["ppl.wikitext2"].mean()), reverse=True)
    for key in order:
        group = rows[(rows["method"] == key[0]) & (rows["evaluations"] == key[1])]
        cells = [_cell(means[key], name) for name in figures]
        shares = "" if simple is None else _shares(means[key], simple)
        seconds = f"{group['gpu_seconds'].mean():.0f}"
        made.append(f"| {key[0]} | {key[1]} | {len(group)} | {seconds} | {' | '.join(cells)} | {shares} |")
    return "\n".join(made)


def forecasts(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table: how well each kind of predictor forecasts the objective of held-out pairs."""
    made = [
        "**Forecasts of held-out pairs: R² at all ratios, Spearman within 2 points of the budget**\n",
        "| fitted on | predictor | R², WikiText-2 | R², PTB | pairs near | rank, WikiText-2 | rank, PTB |",
        "| --- " * 7 + "|",
    ]
    for _, group in pd.DataFrame(rows).groupby(["regime", "overall_ratio", "model"], sort=False):
        found = {(r.place, r.target): r for r in group.itertuples()}
        cells = [
            f"{getattr(found[place, LOG_PPL.of(text).key], figure):.3f}"
            for place, figure in (("wide", "r2"), ("near", "spearman"))
            for text in ("wikitext2", "ptb")
        ]
        near: Any = found["near", "mean"]
        pairs = f"{near.regime} {100 * near.overall_ratio:.4g} %, {near.pairs} pairs"
        cells.insert(2, str(near.held_out))
        made.append(f"| {pairs} | {near.model} | {' | '.join(cells)} |")
    return "\n".join(made)


def _cell(values: pd.DataFrame, name: str) -> str:
    found = values[name]
    if found.isna().any():  # a mean of some seeds alone would be compared with one of all
        return ""
    if metric_of(name).name == PPL.name:
        spread = f" ({found.min():.2f} to {found.max():.2f})" if found.nunique() > 1 else ""
        return f"{found.mean():.2f}{spread}"
    return f"{100 * found.mean():.2f} ± {100 * values[f'se.{name}'].mean():.2f} %"


def _shares(values: pd.DataFrame, simple: pd.DataFrame) -> str:
    texts = ("ppl.wikitext2", "ppl.ptb")
    return ", ".join(f"{values[t].mean() / simple[t].mean():.3f}" for t in texts if t in values)


def picture(rows: pd.DataFrame, path: Path) -> None:
    """The best objective so far against real evaluations; a method without a course is a point."""
    figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    for place, (method, group) in enumerate(rows.groupby("method", sort=False)):
        colour = COLOURS[place % len(COLOURS)]
        courses = [trace for trace in group["trace"] if trace is not None and len(trace) > 1]
        for number, course in enumerate(courses):
            values = np.array([np.nan if value is None else value for value in course], dtype=float)
            best = np.fmin.accumulate(values)
            label = str(method) if number == 0 else None
            axes.step(np.arange(1, len(best) + 1), best, where="post", color=colour, lw=1.2, label=label)
            axes.plot(len(best), best[-1], ".", color=colour)
        if not courses:
            axes.plot(group["evaluations"], group["objective"], "o", color=colour, label=str(method))
    axes.set_xscale("log")
    axes.set_xlabel("real evaluations")
    axes.set_ylabel("best mean log PPL, validation text")
    low = rows["objective"].min()
    simple = rows.loc[rows["method"] == "simple", "objective"].iloc[0]
    axes.set_ylim(low - 0.01, low + 1.4 * (simple - low))  # what lies higher is not worth drawing
    figure.legend(fontsize=8, frameon=False, loc="outside right center")
    figure.savefig(path, dpi=130)
    plt.close(figure)
