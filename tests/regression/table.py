"""The table of a comparison, for a terminal and for a pull request."""

from __future__ import annotations

from collections.abc import Sequence

from tests.regression.comparison import Comparison, Verdict
from tests.regression.pipeline import Check, Result

COLUMNS = ("contender", "metric", "baseline", "now", "change", "std. error", "tolerance", "verdict")
_RIGHT = range(2, 7)


def cells(row: Comparison) -> list[str]:
    """One row's words; a perplexity or log-likelihood has four significant digits or two decimals."""
    size = {"points": "pts"}.get(row.unit, row.unit)
    decimals = 2 if row.unit == "%" else 1 if row.unit == "points" else 3
    return [
        row.contender,
        row.metric,
        _figure(row.baseline),
        _figure(row.now),
        f"{_number(row.change, decimals, '+')} {size}",
        _number(row.error, decimals),
        f"{row.tolerance:g}",
        str(row.verdict),
    ]


def _figure(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1e4 else f"{value:.3g}"


def _number(value: float, decimals: int, sign: str = "") -> str:
    rounded = round(value, decimals) + 0.0  # no negative zero
    return f"{rounded:{sign}.{decimals}f}" if abs(value) < 1e4 else f"{value:{sign}.3g}"


def text(rows: Sequence[Comparison]) -> str:
    """The table in columns."""
    table = [list(COLUMNS), *(cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(
            word.rjust(width) if i in _RIGHT else word.ljust(width)
            for i, (word, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    )


def markdown(rows: Sequence[Comparison]) -> str:
    """The table for a comment; regressions in bold."""
    lines = [" | ".join(COLUMNS), " | ".join("---:" if i in _RIGHT else "---" for i in range(len(COLUMNS)))]
    for row in rows:
        words = cells(row)
        if row.verdict in (Verdict.REGRESSION, Verdict.BETTER):
            words[-1] = f"**{words[-1]}**"
        lines.append(" | ".join(words))
    return "\n".join(f"| {line} |" for line in lines)


def summary(rows: Sequence[Comparison], result: Result) -> list[str]:
    """What failed and what is better, in sentences; the last one is the outcome."""
    lines = [f"FAILED {c.name}: {c.found}; expected {c.expected}" for c in result.checks if not c.passed]
    if result.failure is not None:
        lines.append(f"FAILED the reduced pipeline broke off: {result.failure}")
    better = [row for row in rows if row.verdict is Verdict.BETTER]
    if better:
        lines.append(
            f"{len(better)} figures are better than the baseline; `make regression-update` makes them the "
            "new one, so that they are not lost again unseen"
        )
    worse = [row for row in rows if row.verdict is Verdict.REGRESSION]
    if worse:
        lines.append(f"REGRESSION: {len(worse)} of {len(rows)} figures are worse, beyond tolerance and noise")
    elif not result.sound:
        lines.append("FAILED: see above")
    else:
        lines.append(f"No regression: {len(rows)} figures")
    return lines


def passed(checks: Sequence[Check]) -> list[str]:
    """The checks that held, a line each."""
    return [f"{c.name}: {c.found} (expected {c.expected})" for c in checks if c.passed]
