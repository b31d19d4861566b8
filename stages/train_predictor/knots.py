"""Corrected curves of many pairs: the process of `curves`, at a cost that grows with their number.

Its covariance is a sum over sites of smooth functions of two damages, so that a few of a site's damages,
its knots z, stand for all (Williams & Seeger 2001, "Using the Nyström method to speed up kernel machines"):

    d d' k(log d, log d') ≈ φ(d)·φ(d'),   φ(d) = L⁻¹ (d z_j k(log d, log z_j))_j,   L Lᵀ the same among knots.

Pivoted Cholesky (Harbrecht, Peters & Schneider 2012, "On the low-rank approximation by the pivoted Cholesky
decomposition") sets the next knot where that is furthest off, until it is off nowhere by more than
`TOLERANCE`. What remains is a Bayesian linear regression on a level, a slope and all sites' φ (Rasmussen &
Williams 2006, 2.1): of n pairs it needs the cross-products of F features, n F² operations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular

Array = NDArray[np.float64]
TOLERANCE = 1e-5
"""What may be left out of a site's greatest prior variance: a three-hundredth of its standard deviation."""
LEAST = 1e-6  # nats: what a site's damage is at least, in the logarithm
_CANDIDATES = 256  # damages of a site among which its knots are chosen
_ROWS = 4096  # pairs whose features are held at once


@dataclass(frozen=True)
class Prior:
    """What is thought of intercept, slope and noise before the process is fitted (`curves`)."""

    intercept: float
    slope: float
    spread: float
    """Standard deviation of the intercept."""
    slope_spread: float
    """Standard deviation of the slope, as a fraction of it."""
    level: float
    """Root mean square of what a straight line leaves over."""

    def variances(self, totals: Array, relative: float, noise: float) -> Array:
        """Variances of the noise of pairs whose damages sum up to `totals` (n,)."""
        found: Array = (noise * self.level) ** 2 + (relative * self.slope * totals) ** 2
        return found


def alike(here: Array, there: Array, length: float) -> Array:
    """How far a site's factor is the same at two damages, which broadcast."""
    logarithms = np.log(np.maximum(here, LEAST)) - np.log(np.maximum(there, LEAST))
    found: Array = np.exp(-(logarithms**2) / (2 * length**2))
    return found


@dataclass(frozen=True)
class KnotCurves:
    """forecast = intercept + Σ_s d_s (slope + Σ_j weights_js k(log d_s, log knots_js)).

    knots and weights are (K, S); a site with fewer knots than K has weights of 0.
    """

    intercept: float
    slope: float
    length: float
    knots: Array
    weights: Array

    @classmethod
    def fit(
        cls,
        damages: Array,
        target: Array,
        prior: Prior,
        taus: Sequence[float],
        lengths: Sequence[float],
        noises: Sequence[tuple[float, float]],
    ) -> tuple[KnotCurves, Array]:
        """Fit on the sites' damages (n, S) and a target (n,), with the likeliest of the settings given.

        `noises` are pairs of relative and absolute noise (`Prior.variances`). Returns also what is left
        over (n,): each pair's target less its forecast by all the others.
        """
        rest = target - prior.intercept - prior.slope * damages.sum(axis=1)
        found = []
        for length in lengths:
            basis = _Basis.of(damages, length)
            for noise, sums in zip(noises, basis.sums(damages, rest, prior, noises), strict=True):
                found += [_Posterior.of(basis, basis.scales(prior, tau), sums, noise) for tau in taus]
            best = max(found, key=lambda posterior: posterior.likelihood)
            found = [best]
        return best.curves(prior), best.left_over(damages, rest, prior)

    def forecast(self, damages: Array) -> Array:
        """Forecasts (m,) for the sites' damages (m, S)."""
        total: Array = self.intercept + self.by_site(damages).sum(axis=1)
        return total

    def by_site(self, damages: Array) -> Array:
        """What each site adds to the forecast, (m, S)."""
        factors = np.full(damages.shape, self.slope)
        for knots, weights in zip(self.knots, self.weights, strict=True):
            factors += weights * alike(damages, knots, self.length)
        added: Array = damages * factors
        return added

    def to_json(self) -> dict[str, Any]:
        scalars = {n: getattr(self, n) for n in ("intercept", "slope", "length")}
        return {**scalars, "knots": self.knots.tolist(), "weights": self.weights.tolist()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> KnotCurves:
        intercept, slope, length = (float(content[n]) for n in ("intercept", "slope", "length"))
        knots, weights = (np.array(content[n], dtype=np.float64) for n in ("knots", "weights"))
        return cls(intercept, slope, length, knots, weights)


@dataclass(frozen=True)
class _Sums:
    """What the pairs add up to under one noise, whose precisions weigh them."""

    products: Array
    """Cross-products of features (F, F)."""
    projected: Array
    """Products of features and what is to be explained (F,)."""
    constant: float
    """That part of the likelihood's logarithm which no weights change."""


@dataclass(frozen=True)
class _Basis:
    """Features (F,) of damages: a level, their sum, and each site's φ."""

    length: float
    knots: Sequence[Array]
    factors: Sequence[Array]
    """L of each site."""

    @classmethod
    def of(cls, damages: Array, length: float) -> _Basis:
        knots = [_knots(site, length) for site in damages.T]
        factors = [cholesky(_covariance(z, z, length), lower=True) for z in knots]
        return cls(length, knots, factors)

    def scales(self, prior: Prior, tau: float) -> Array:
        """Prior standard deviations (F,) of the features' weights."""
        sites = sum(len(z) for z in self.knots)
        steep = abs(prior.slope)
        return np.array([prior.spread, prior.slope_spread * steep, *[tau * steep] * sites])

    def features(self, damages: Array) -> Array:
        """(m, F) of damages (m, S)."""
        parts = [
            solve_triangular(factor, _covariance(knots, site, self.length), lower=True)
            for site, knots, factor in zip(damages.T, self.knots, self.factors, strict=True)
        ]
        return np.vstack([np.ones(len(damages)), damages.sum(axis=1), *parts]).T

    def sums(
        self, damages: Array, rest: Array, prior: Prior, noises: Sequence[tuple[float, float]]
    ) -> list[_Sums]:
        """What all pairs add up to, by noise."""
        size = 2 + sum(len(z) for z in self.knots)
        found = [_Sums(np.zeros((size, size)), np.zeros(size), 0.0) for _ in noises]
        for rows in _blocks(len(damages)):
            features, totals = self.features(damages[rows]), damages[rows].sum(axis=1)
            for place, noise in enumerate(noises):
                deviations = np.sqrt(prior.variances(totals, *noise))
                scaled, left = features / deviations[:, None], rest[rows] / deviations
                before = found[place]
                found[place] = _Sums(
                    before.products + scaled.T @ scaled,
                    before.projected + left @ scaled,
                    before.constant - 0.5 * float(left @ left) - float(np.log(deviations).sum()),
                )
        return found


@dataclass(frozen=True)
class _Posterior:
    """Weights of the features, given the pairs."""

    basis: _Basis
    scales: Array
    noise: tuple[float, float]
    factor: Array
    """Lower Cholesky factor (F, F) of the precision of weights / scales."""
    weights: Array
    likelihood: float
    """Logarithm of the marginal likelihood, up to a constant."""

    @classmethod
    def of(cls, basis: _Basis, scales: Array, sums: _Sums, noise: tuple[float, float]) -> _Posterior:
        precision = np.eye(len(scales)) + scales[:, None] * sums.products * scales
        factor = cholesky(precision, lower=True)
        projected = scales * sums.projected
        solved = cho_solve((factor, True), projected)
        explained = 0.5 * float(projected @ solved) - float(np.log(np.diag(factor)).sum())
        return cls(basis, scales, noise, factor, scales * solved, sums.constant + explained)

    def left_over(self, damages: Array, rest: Array, prior: Prior) -> Array:
        """What each pair (n,) is off its forecast by all others: its residual over 1 less its leverage."""
        found = []
        for rows in _blocks(len(damages)):
            features = self.basis.features(damages[rows])
            deviations = np.sqrt(prior.variances(damages[rows].sum(axis=1), *self.noise))
            known = features * self.scales / deviations[:, None]
            scaled = solve_triangular(self.factor, known.T, lower=True)
            leverage = np.einsum("fn,fn->n", scaled, scaled)
            found.append((rest[rows] - features @ self.weights) / (1 - leverage))
        return np.concatenate(found)

    def curves(self, prior: Prior) -> KnotCurves:
        """What the weights say as a function of damages."""
        knots = np.zeros((max(len(z) for z in self.basis.knots), len(self.basis.knots)))
        weights = np.zeros_like(knots)
        start = 2
        for site, (own, factor) in enumerate(zip(self.basis.knots, self.basis.factors, strict=True)):
            of_site = self.weights[start : start + len(own)]
            knots[: len(own), site] = own
            weights[: len(own), site] = own * solve_triangular(factor, of_site, lower=True, trans="T")
            start += len(own)
        intercept, slope = prior.intercept + self.weights[0], prior.slope + self.weights[1]
        return KnotCurves(float(intercept), float(slope), self.basis.length, knots, weights)


def _covariance(here: Array, there: Array, length: float) -> Array:
    """A site's prior covariance d d' k(log d, log d') of damages (a,) and (b,), (a, b)."""
    return np.outer(here, there) * alike(here[:, None], there[None], length)


def _knots(damages: Array, length: float) -> Array:
    """A site's knots, of its damages (n,): none where it is never cut."""
    candidates = np.unique(damages[damages > 0])
    if len(candidates) > _CANDIDATES:
        candidates = candidates[np.linspace(0, len(candidates) - 1, _CANDIDATES).round().astype(int)]
    left, chosen = candidates**2, []
    rows: list[Array] = []
    while len(candidates) and left.max() > TOLERANCE * candidates[-1] ** 2:
        place = int(left.argmax())
        row = _covariance(candidates[place : place + 1], candidates, length)[0]
        for earlier in rows:
            row -= earlier[place] * earlier
        rows.append(row / np.sqrt(left[place]))
        left = left - rows[-1] ** 2
        left[place] = 0.0
        chosen.append(place)
    return candidates[chosen]


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, _ROWS):
        yield slice(start, start + _ROWS)
