"""Damage curves: what cutting one site alone costs, expected or measured, and read off at any ratio.

Damages of sites nearly add up in log PPL, so the sum of an architecture's damages ranks it well
before anything is learned; what trees and weights learn on top are the interactions.

`curvature` gives every site's whole curve without measuring a cut; where sites were cut alone (the
single-site design), what was measured of them corrects it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stages.architecture import Architecture, Kind, ModelShape, Site
from stages.files import InputError, read_document, write_json
from stages.metrics.perplexity import LOG_PPL

SCHEMA, VERSION = "prunecast.damage-curves", 1
Points = Sequence[tuple[float, float]]
"""(ratio, damage) of one site, by rising ratio."""

FLOOR = 1e-4
"""Nats a token: a smaller damage, or a gain, is not told from nothing by the text of a measurement."""
SLOPES = (1.0, 4.0)
"""Least and greatest slope of a curve beyond its points, in logarithms: the first and fourth power."""
_ALONE = 2.0  # the slope of a curve of one point


@dataclass(frozen=True)
class DamageCurves:
    """Rise of the mean log PPL of all texts, nats a token, when a site alone is cut to a ratio.

    Between points a power of the ratio, as below the first and beyond the last one; never
    falling. A site without points has the median curve of its kind.
    """

    points: Mapping[Site, Points]

    @classmethod
    def of_pairs(
        cls,
        shape: ModelShape,
        metrics: Mapping[Architecture, Mapping[str, float]],
        texts: Sequence[str],
        expected: DamageCurves | None = None,
    ) -> DamageCurves | None:
        """Curves from the measured architectures that cut one site, and what is `expected` without.

        Where a site has both, the expected curve is scaled to go through what was measured. None if
        there is neither.

        Raises:
            InputError: the dense model is not among the measured ones.
        """
        alone = {a: site for a in metrics if (site := only_cut(shape, a)) is not None}
        if not alone:
            return expected
        if shape.dense() not in metrics:
            raise InputError("sites were cut alone, but the dense model was not measured; run `dvc repro`")

        def level(architecture: Architecture) -> float:
            return float(np.mean([metrics[architecture][LOG_PPL.of(text).key] for text in texts]))

        base = level(shape.dense())
        found: dict[Site, list[tuple[float, float]]] = {}
        for architecture, site in alone.items():
            ratio = architecture.site_ratio(shape, site)
            found.setdefault(site, []).append((ratio, level(architecture) - base))
        measured = {site: sorted(points) for site, points in sorted(found.items())}
        return cls(measured) if expected is None else expected.corrected(measured)

    def corrected(self, measured: Mapping[Site, Points]) -> DamageCurves:
        """These curves, each times a factor that takes it through the site's measured points.

        Between them the factor is a power of the ratio, before the first and after the last constant.
        """
        made = dict(self.points)
        for site, points in measured.items():
            if site not in made:
                made[site] = points
                continue
            at = np.log([ratio for ratio, _ in points])
            factors = np.log([max(d, FLOOR) / self.damage(site, ratio) for ratio, d in points])
            made[site] = [(r, d * float(np.exp(np.interp(np.log(r), at, factors)))) for r, d in made[site]]
        return DamageCurves(made)

    def damage(self, site: Site, ratio: float) -> float:
        """Nats a token, at least 0."""
        if ratio <= 0:
            return 0.0
        known = self._logarithms.get(site)
        if known is not None:
            return _read(*known, ratio)
        return float(np.median([_read(*self._logarithms[s], ratio) for s in self._of_kind(site.kind)]))

    def _of_kind(self, kind: Kind) -> list[Site]:
        return [s for s in self.points if s.kind is kind] or list(self.points)

    @cached_property
    def _logarithms(self) -> dict[Site, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
        found = {}
        for site, points in self.points.items():
            ratios, damages = np.array(points, dtype=np.float64).T
            found[site] = np.log(ratios), np.log(np.maximum.accumulate(np.maximum(damages, FLOOR)))
        return found

    def write(self, path: Path, key: str | None = None) -> None:
        """Write the points, and the `key` of what they were computed from, if one is given."""
        rows = {str(site): [list(point) for point in points] for site, points in self.points.items()}
        about = {"unit": "nats a token, mean of the texts"} | ({} if key is None else {"key": key})
        write_json(path, SCHEMA, VERSION, {**about, "points": rows})

    @classmethod
    def read(cls, path: Path, key: str | None = None, stage: str = "evaluate") -> DamageCurves | None:
        """Read what `write` wrote, in the stage of that name.

        None where it holds no points, or was computed from another key.

        Raises:
            InputError: the file is missing, of another schema, or damaged.
        """

        def make(document: dict[str, Any]) -> DamageCurves | None:
            if key is not None and document.get("key") != key:
                return None
            points = {
                Site.parse(name): [(float(ratio), float(d)) for ratio, d in rows]
                for name, rows in document["points"].items()
            }
            return cls(points) if points else None

        return read_document(path, SCHEMA, VERSION, stage, make)


def only_cut(shape: ModelShape, architecture: Architecture) -> Site | None:
    """The site that an architecture cuts, if it cuts just one."""
    cut = [
        Site(layer, kind)
        for layer, (width, dense) in enumerate(zip(architecture.widths, shape.widths, strict=True))
        if width != dense
        for kind in Kind
        if width.of(kind) != dense.of(kind)
    ]
    return cut[0] if len(cut) == 1 else None


def _read(ratios: np.ndarray[Any, Any], damages: np.ndarray[Any, Any], ratio: float) -> float:
    """A curve's value; `ratios` and `damages` are logarithms."""
    at = float(np.log(ratio))
    slopes = np.diff(damages) / np.diff(ratios) if len(ratios) > 1 else np.array([_ALONE])
    if at <= ratios[0]:
        return float(np.exp(damages[0] + np.clip(slopes[0], *SLOPES) * (at - ratios[0])))
    if at >= ratios[-1]:
        return float(np.exp(damages[-1] + np.clip(slopes[-1], *SLOPES) * (at - ratios[-1])))
    return float(np.exp(np.interp(at, ratios, damages)))
