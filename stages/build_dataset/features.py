"""Features of an architecture: what the predictor sees.

| feature | what it is |
| --- | --- |
| ``ratio.LL.KIND`` | the achieved ratio of one site |
| ``band.AA-BB.KIND`` | the mean ratio of a band of neighbouring layers' sites of one kind |
| ``ratio.KIND`` | the mean ratio of all sites of one kind |
| ``mass.KIND`` | the share of all importance scores of that kind in removed units |
| ``overall_ratio`` | the fraction of all decoder-layer parameters removed |
| ``damage``, ``damage.KIND`` | the sum of the sites' own damages (`DamageCurves`), nats a token |
| ``damage.AA-BB.KIND``, ``damage.LL.KIND`` | the same of a band's sites, and of one site |

The damages are there where curvature or the single-site design tells them.

Every feature grows when any site is cut further, so a monotone law of the sites is a monotone
law of the features.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.architecture import Architecture, Kind, LayerWidth, ModelShape, Site, Width
from stages.evaluate.results.damage import DamageCurves
from stages.evaluate.results.scores import UnitScores

Array = NDArray[np.float64]
DAMAGE = "damage"
ALONE = 0.3
"""The ratio at which damage curves are compared."""


@dataclass(frozen=True)
class Features:
    """Computes features of architectures of one model.

    `attention_mass[layer, g, h]` and `mlp_mass[layer, c]` are the importance scores kept by the
    first g KV groups with their first h heads, and by the first c channels. `curves` are the sites'
    own damages, if they are known.
    """

    shape: ModelShape
    band: int
    attention_mass: Array
    mlp_mass: Array
    curves: DamageCurves | None = None

    @classmethod
    def of_model(
        cls, shape: ModelShape, band: int, scores_path: Path, curves: DamageCurves | None = None
    ) -> Features:
        """Features of a model whose importance scores `evaluate` wrote.

        Raises:
            InputError: the scores are missing, damaged, or another model's.
        """
        scores = UnitScores.of_model(scores_path, shape).sorted()
        # (layers, G, H): of one group, by heads kept
        kept = scores.groups[..., None] + np.cumsum(scores.heads, axis=-1)
        attention = np.zeros((shape.layers, shape.kv_groups + 1, shape.heads_per_group + 1))
        attention[:, 1:, 1:] = np.cumsum(kept, axis=1)
        channels = np.zeros((shape.layers, shape.channels + 1))
        channels[:, 1:] = np.cumsum(scores.channels, axis=-1)
        return cls(shape, band, attention, channels, curves)

    @cached_property
    def sites(self) -> list[Site]:
        return list(self.shape.sites())

    @cached_property
    def _bands(self) -> list[tuple[str, list[int]]]:
        """Names of the bands, and the places of their sites in `sites`."""
        found: dict[tuple[int, Kind], list[int]] = {}
        for place, site in enumerate(self.sites):
            found.setdefault((site.layer // self.band, site.kind), []).append(place)
        return [
            (f"band.{self.sites[p[0]].layer:02d}-{self.sites[p[-1]].layer:02d}.{kind}", p)
            for (_, kind), p in found.items()
        ]

    @cached_property
    def names(self) -> list[str]:
        sites = [f"ratio.{site.layer:02d}.{site.kind}" for site in self.sites]
        kinds = [f"{what}.{kind}" for what in ("ratio", "mass") for kind in Kind]
        of_bands = [name.replace("band", DAMAGE, 1) for name, _ in self._bands]
        of_sites = [name.replace("ratio", DAMAGE, 1) for name in sites]
        damages = (
            [DAMAGE, *(f"{DAMAGE}.{kind}" for kind in Kind), *of_bands, *of_sites] if self.curves else []
        )
        return [*sites, *(name for name, _ in self._bands), *kinds, "overall_ratio", *damages]

    def shares(self, feature: str) -> dict[Site, float]:
        """The sites that a feature speaks of, and their shares of its importance, summing to 1.

        Equal shares; of a damage by what each site's curve says at the ratio `ALONE`.
        """
        sites = self.sites_of(feature)
        if self.curves is None or not is_damage(feature):
            return dict.fromkeys(sites, 1 / len(sites))
        damages = [self.curves.damage(site, ALONE) for site in sites]
        return {site: damage / sum(damages) for site, damage in zip(sites, damages, strict=True)}

    def sites_of(self, feature: str) -> list[Site]:
        """The sites that a feature speaks of."""
        alone = feature.replace(DAMAGE, "ratio", 1) if is_of_site(feature) else feature
        if alone in self.names[: len(self.sites)]:
            return [self.sites[self.names.index(alone)]]
        for name, places in self._bands:
            if feature in (name, name.replace("band", DAMAGE, 1)):
                return [self.sites[place] for place in places]
        kinds = [kind for kind in Kind if feature.endswith(f".{kind}")]
        return [site for site in self.sites if not kinds or site.kind in kinds]

    @cached_property
    def _site_ratios(self) -> dict[tuple[Kind, LayerWidth], float]:
        return {}

    def _ratio(self, kind: Kind, width: LayerWidth) -> float:
        if (kind, width) not in self._site_ratios:
            dense = self.shape.site_parameters(kind, self.shape.dense_width)
            self._site_ratios[kind, width] = 1 - self.shape.site_parameters(kind, width) / dense
        return self._site_ratios[kind, width]

    def row(self, architecture: Architecture) -> Array:
        """Features (len(names),) of one architecture."""
        widths = architecture.widths
        ratios = np.array([self._ratio(site.kind, widths[site.layer]) for site in self.sites])
        bands = [ratios[places].mean() for _, places in self._bands]
        kinds = [ratios[0::2].mean(), ratios[1::2].mean()]
        layers = np.arange(len(widths))
        groups, heads, channels = np.array(widths).T
        masses = [
            1 - self.attention_mass[layers, groups, heads].sum() / self.attention_mass[:, -1, -1].sum(),
            1 - self.mlp_mass[layers, channels].sum() / self.mlp_mass[:, -1].sum(),
        ]
        overall = architecture.overall_ratio(self.shape)
        return np.array([*ratios, *bands, *kinds, *masses, overall, *self._damages(widths)])

    def _damages(self, widths: Sequence[LayerWidth]) -> list[float]:
        if self.curves is None:
            return []
        each = np.array([self._damage(site, widths[site.layer]) for site in self.sites])
        of_bands = [float(each[places].sum()) for _, places in self._bands]
        return [
            float(each.sum()),
            float(each[0::2].sum()),
            float(each[1::2].sum()),
            *of_bands,
            *each.tolist(),
        ]

    @cached_property
    def _site_damages(self) -> dict[tuple[Site, Width], float]:
        return {}

    def _damage(self, site: Site, width: LayerWidth) -> float:
        key = (site, width.of(site.kind))
        if key not in self._site_damages:
            assert self.curves is not None
            self._site_damages[key] = self.curves.damage(site, self._ratio(site.kind, width))
        return self._site_damages[key]

    def matrix(self, architectures: Sequence[Architecture]) -> Array:
        """Features (n, len(names)) of several architectures."""
        return np.stack([self.row(a) for a in architectures])


def is_damage(feature: str) -> bool:
    """Whether a feature is a sum of damages, of all sites or a band's."""
    return feature.split(".")[0] == DAMAGE


def is_of_site(feature: str) -> bool:
    """Whether a feature is one site's damage: what `Curves` are fitted on, and nothing else is."""
    return re.fullmatch(rf"{DAMAGE}\.\d+\.[a-z]+", feature) is not None


def is_trusted(feature: str) -> bool:
    """Whether a feature sums the damages of many sites: a model trusts these before its own weights."""
    return feature in (DAMAGE, *(f"{DAMAGE}.{kind}" for kind in Kind))
