"""narrowed_space.json: what narrowing decided for every site, and the widths that remain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from stages.architecture import Kind, Site, Width
from stages.files import read_document, write_json
from stages.sample.space import Interval, Space

SCHEMA, VERSION = "prunecast.narrowed-space", 2
Class = Literal["sensitive", "insensitive", "other", "exempt"]


@dataclass(frozen=True)
class NarrowedSite:
    """What narrowing decided for one site, and why."""

    site: Site
    importance: float
    """The site's share of what the ranking goes by; shares sum to 1."""
    label: Class
    interval: Interval
    """The ratios that remain."""
    widths: Sequence[Width] = ()
    """The widths that remain, once a space gave the site some."""


@dataclass(frozen=True)
class NarrowedSpace:
    """What narrowing decided for all sites, and what ranked them: the predictor's importances, or damages."""

    ranked_by: str
    sites: Sequence[NarrowedSite]


def write(path: Path, narrowed: Sequence[NarrowedSite], space: Space, by: str) -> None:
    """Write the narrowed space for a person: a line a site, with its class, ratios and widths."""
    low, high = space.reachable()
    rows = []
    for n in narrowed:
        widths = [o.width for o in space.allowed.get(n.site, [])]
        rows.append(
            {
                "site": str(n.site),
                "class": n.label,
                "importance": round(n.importance, 6),
                "ratios": list(n.interval),
                "widths": [w[0] if n.site.kind is Kind.MLP else list(w) for w in widths],
            }
        )
    summary = {"ranked_by": by, "overall_ratio_reachable": [round(low, 4), round(high, 4)]}
    write_json(path, SCHEMA, VERSION, {"summary": summary, "sites": rows})


def read(path: Path) -> NarrowedSpace:
    """Read what `write` wrote.

    Raises:
        InputError: the file is missing, of another schema, or damaged.
    """

    def make(document: dict[str, Any]) -> NarrowedSpace:
        return NarrowedSpace(document["summary"]["ranked_by"], [_site(row) for row in document["sites"]])

    return read_document(path, SCHEMA, VERSION, "search", make)


def _site(row: dict[str, Any]) -> NarrowedSite:
    if row["class"] not in get_args(Class):
        raise ValueError(f"class {row['class']!r}; expected one of {', '.join(get_args(Class))}")
    layer, _, kind = row["site"].partition(".")
    low, high = row["ratios"]
    widths = [(w,) if isinstance(w, int) else tuple(w) for w in row["widths"]]
    return NarrowedSite(
        Site(int(layer), Kind(kind)), float(row["importance"]), row["class"], (low, high), widths
    )
