"""What became of a fault, and the one table of all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """What became of a fault: the first three are as it should be."""

    UNHARMED = "unharmed"
    """All results are those of the undisturbed run, or the fault could do nothing."""
    TOLD = "told"
    """The stage went on, and said in words what it passed over or did without."""
    REFUSED = "refused"
    """The stage ended with words that name the thing, and what they advise heals it."""
    SILENT = "SILENT"
    """Other results, without a word."""
    TRACEBACK = "TRACEBACK"
    HANG = "HANG"
    LOST = "LOST"
    """What had been measured is gone, or no later start gets on."""
    LEFT = "LEFT"
    """Locks, temporary files or processes stay behind."""

    @property
    def good(self) -> bool:
        return self in (Verdict.UNHARMED, Verdict.TOLD, Verdict.REFUSED)


@dataclass(frozen=True)
class Trial:
    """One fault and what became of it."""

    kind: str
    what: str
    verdict: Verdict
    words: str
    """The last line said, or what is wrong."""
    seconds: float = 0.0


def table(trials: Sequence[Trial]) -> str:
    """One line a kind of fault: how many, and how many of each verdict."""
    kinds = list(dict.fromkeys(trial.kind for trial in trials))
    rows = [["kind of fault", "tried", *(v.value for v in Verdict), "longest, s"]]
    for kind in kinds:
        rows.append(_row(kind, [t for t in trials if t.kind == kind]))
    rows.append(_row("all", trials))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(_aligned(row, widths)) for row in rows]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _row(kind: str, trials: Sequence[Trial]) -> list[str]:
    found = Counter(trial.verdict for trial in trials)
    counts = [str(found[v]) if found[v] else "." for v in Verdict]
    return [kind, str(len(trials)), *counts, f"{max((t.seconds for t in trials), default=0):.1f}"]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> Iterable[str]:
    return (
        cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
    )
