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
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.architecture import Architecture, Kind, ModelShape, Site
from stages.evaluate.results.damage import DamageCurves
from stages.evaluate.results.scores import UnitScores

Array = NDArray[np.float64]
Places = NDArray[np.int64]
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
    def _columns(self) -> Places:
        """The places of `sites` among all attentions and MLPs, of layer after layer."""
        return np.array([2 * site.layer + [*Kind].index(site.kind) for site in self.sites])

    @cached_property
    def _of_kinds(self) -> list[list[int]]:
        """The places in `sites` of those of each kind."""
        return [[p for p, site in enumerate(self.sites) if site.kind is kind] for kind in Kind]

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
    def _kept(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The parameters that attentions keep by groups and heads (G + 1, H + 1), and MLPs by channels."""
        shape = self.shape
        return (
            np.array(
                [
                    [shape.attention_parameters(g, h) for h in range(shape.heads_per_group + 1)]
                    for g in range(shape.kv_groups + 1)
                ]
            ),
            np.array([shape.mlp_parameters(c) for c in range(shape.channels + 1)]),
        )

    @cached_property
    def _dense(self) -> list[NDArray[np.int64]]:
        """The parameters (layers, 1) of each layer's attention and MLP; 1 where it has none."""
        made = [[self.shape.site_parameters(kind, w) or 1 for w in self.shape.widths] for kind in Kind]
        return [np.array(of_kind)[:, None] for of_kind in made]

    @cached_property
    def _site_damages(self) -> tuple[Array, Array]:
        """Damages of attentions (layers, G + 1, H + 1) and MLPs (layers, C + 1), NaN until asked for."""
        return np.full(self.attention_mass.shape, np.nan), np.full(self.mlp_mass.shape, np.nan)

    def row(self, architecture: Architecture) -> Array:
        """Features (len(names),) of one architecture."""
        found: Array = self.matrix([architecture])[0]
        return found

    def matrix(self, architectures: Sequence[Architecture]) -> Array:
        """Features (n, len(names)) of several architectures."""
        layers = np.arange(self.shape.layers)
        # (layers, n), of each layer's width
        groups, heads, channels = self._widths(architectures).transpose(2, 1, 0)
        kept = [self._kept[0][groups, heads], self._kept[1][channels]]
        ratios = _by_site([1 - k / d for k, d in zip(kept, self._dense, strict=True)])[:, self._columns]
        attention = self.attention_mass[layers, groups.T, heads.T].sum(axis=1)
        mlp = self.mlp_mass[layers, channels.T].sum(axis=1)
        masses = [1 - attention / self.attention_mass[:, -1, -1].sum(), 1 - mlp / self.mlp_mass[:, -1].sum()]
        overall = 1 - sum(k.sum(axis=0) for k in kept) / self.shape.decoder_parameters
        bands = [_rows(ratios[:, places]).mean(axis=1) for _, places in self._bands]
        kinds = [_rows(ratios[:, places]).mean(axis=1) for places in self._of_kinds]
        parts = [ratios, *(part[:, None] for part in (*bands, *kinds, *masses, overall))]
        if self.curves is not None:
            each = self._damages(groups, heads, channels)
            groups_of = [*self._of_kinds, *(places for _, places in self._bands)]
            sums = [each, *(each[:, places] for places in groups_of)]
            parts += [*(_rows(part).sum(axis=1)[:, None] for part in sums), each]
        return np.hstack(parts)

    def _widths(self, architectures: Sequence[Architecture]) -> Places:
        """Widths (n, layers, 3): out of one stream of numbers, which takes a tenth of nested tuples' time."""
        numbers = chain.from_iterable(chain.from_iterable(a.widths for a in architectures))
        return np.fromiter(numbers, np.int64).reshape(len(architectures), self.shape.layers, 3)

    def _damages(self, groups: Places, heads: Places, channels: Places) -> Array:
        """The sites' own damages (n, S) at the layers' widths (layers, n)."""
        assert self.curves is not None
        attention, mlp = self._site_damages
        found = []
        for site in self.sites:
            table, at, kept = (
                (attention[site.layer], (groups[site.layer], heads[site.layer]), self._kept[0])
                if site.kind is Kind.ATTENTION
                else (mlp[site.layer], (channels[site.layer],), self._kept[1])
            )
            missing = np.isnan(table[at])
            for place in map(tuple, np.unique(np.stack(at)[:, missing], axis=1).T.tolist()):
                ratio = 1 - int(kept[place]) / self.shape.dense_parameters(site)
                table[place] = self.curves.damage(site, ratio)
            found.append(table[at])
        return np.stack(found, axis=1)


def _by_site(of_kinds: Sequence[Array]) -> Array:
    """(n, S) of attentions and MLPs (layers, n) in turn."""
    stacked = np.stack(of_kinds, axis=1)
    return _rows(stacked.reshape(-1, stacked.shape[-1]).T)


def _rows(values: Array) -> Array:
    """Values (n, m) whose rows lie together: their sums are those of each row alone, to the last digit."""
    return np.ascontiguousarray(values)


def is_damage(feature: str) -> bool:
    """Whether a feature is a sum of damages, of all sites or a band's."""
    return feature.split(".")[0] == DAMAGE


def is_of_site(feature: str) -> bool:
    """Whether a feature is one site's damage: what `Curves` are fitted on, and nothing else is."""
    return re.fullmatch(rf"{DAMAGE}\.\d+\.[a-z]+", feature) is not None


def is_trusted(feature: str) -> bool:
    """Whether a feature sums the damages of many sites: a model trusts these before its own weights."""
    return feature in (DAMAGE, *(f"{DAMAGE}.{kind}" for kind in Kind))
