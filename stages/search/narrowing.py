"""Narrow the search space by what the predictor learned.

The paper's rule (arXiv 2309.09507, section 3.3): sites whose ratios matter much to the forecast are
limited to mild ratios, sites that matter little are opened to strong ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stages.architecture import Kind, ModelShape, Site
from stages.files import InputError, write_json
from stages.params import Budget, Narrowing
from stages.sample.space import Interval, Space

SCHEMA, VERSION = "prunecast.narrowed-space", 1
Class = Literal["sensitive", "insensitive", "other", "exempt"]


@dataclass(frozen=True)
class NarrowedSite:
    """What narrowing decided for one site, and why."""

    site: Site
    importance: float
    """Share of the predictors' gain, averaged over the objective's targets."""
    label: Class
    interval: Interval


def narrow(
    shape: ModelShape, prunable: Sequence[Site], importance: Mapping[str, float], section: Narrowing
) -> list[NarrowedSite]:
    """Classify every site by its importance (keys like ``12.attention``); all sites, by layer.

    Sites that the designs exempt stay dense. Ties go to the earlier layer.
    """
    ranked = sorted(prunable, key=lambda site: (-importance[str(site)], site))
    sensitive = set(ranked[: round(section.sensitive * len(ranked))])
    insensitive = set(ranked[len(ranked) - round(section.insensitive * len(ranked)) :])

    def decide(site: Site) -> tuple[Class, Sequence[float]]:
        if site not in ranked:
            return "exempt", (0.0, 0.0)
        if site in sensitive:
            return "sensitive", section.sensitive_ratios
        return (
            ("insensitive", section.insensitive_ratios)
            if site in insensitive
            else ("other", section.other_ratios)
        )

    narrowed = []
    for site in shape.sites():
        label, (low, high) = decide(site)
        narrowed.append(NarrowedSite(site, importance[str(site)], label, (low, high)))
    return narrowed


def space_of(shape: ModelShape, granularity: int, narrowed: Sequence[NarrowedSite]) -> Space:
    """The space in which the search moves."""
    return Space(shape, granularity, {n.site: n.interval for n in narrowed if n.label != "exempt"})


def check_reachable(space: Space, budget: Budget) -> None:
    """Raise InputError, with the reachable interval, unless the narrowed space holds the budget."""
    low, high = space.reachable()
    if not low <= budget.overall_ratio <= high:
        raise InputError(
            f"params.yaml: budget.overall_ratio is {budget.overall_ratio:g}; the narrowed space reaches "
            f"{low:.4f} to {high:.4f}. Change the budget, or search.narrowing's fractions and ratios"
        )


def write(path: Path, narrowed: Sequence[NarrowedSite], space: Space) -> None:
    """Write the narrowed space for a person: a line a site, with its class, ratios and widths."""
    low, high = space.reachable()
    rows = []
    for n in narrowed:
        widths = [list(o.width) for o in space.allowed.get(n.site, [])]
        if n.site.kind is Kind.MLP:
            widths = [w[0] for w in widths]  # type: ignore[misc]
        rows.append(
            {
                "site": str(n.site),
                "class": n.label,
                "importance": round(n.importance, 6),
                "ratios": list(n.interval),
                "widths": widths,
            }
        )
    summary = {"overall_ratio_reachable": [round(low, 4), round(high, 4)]}
    write_json(path, SCHEMA, VERSION, {"summary": summary, "sites": rows})
