"""The damage curves, corrected by pairs: a Gaussian process whose mean is their sum.

An architecture's damages nearly add up, D = Σ_s d_s, but each site's curve is off by a factor that
varies slowly along it. With ε_s a Gaussian process in log d_s, of standard deviation τ and length ℓ,

    target = a + b Σ_s d_s (1 + ε_s(log d_s)) + noise,    noise variance s² + (r b D)²,

which is a Gaussian process over architectures (Rasmussen & Williams 2006, "Gaussian processes for
machine learning", 2.2) with the covariance b² τ² Σ_s d_s d'_s exp(-(log d_s - log d'_s)² / 2ℓ²). A
pair thus tells most of the sites that it cuts most, at about the widths that it cuts them to, and
where nothing is measured the curves stand as they are. a and b are refined within the process;
τ, ℓ, r and s are those of the largest marginal likelihood on a small grid (ibid., 5.4), whose τ ends
where few noisy pairs would otherwise be taken at their word: larger ones forecast the next rounds worse.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from stages.train_predictor.knots import KnotCurves, Prior, alike

Array = NDArray[np.float64]
TAUS = (0.15, 0.25, 0.4)
LENGTHS = (0.7, 1.4)
RELATIVE_NOISES = (0.05, 0.1)
NOISES = (0.1, 0.3, 1.0)
"""Noises to choose from, in the root mean square that a straight line in D leaves over."""
EXACT = 530
"""Pairs that are fitted as above, which takes their number squared times the sites; more, as in `knots`."""
_SLOPE = 0.3
"""Standard deviation of b around a straight line's, as a fraction of it."""
_ROWS = 256  # of the covariance at once


@dataclass(frozen=True)
class Curves:
    """forecast = intercept + slope · D + covariance with the pairs · weights.

    damages (n, S) are the fitted pairs' by site, weights (n,).
    """

    intercept: float
    slope: float
    spread: float
    """Prior standard deviation of the intercept."""
    tau: float
    length: float
    damages: Array
    weights: Array

    @classmethod
    def fit(cls, damages: Array, target: Array) -> tuple[AnyCurves, Array]:
        """Fit on the sites' damages (n, S), in nats a token, and a target (n,).

        Returns also what is left over (n,): each pair's target less its forecast by all the others.
        More than `EXACT` pairs are fitted over knots.
        """
        total = damages.sum(axis=1)
        line = np.stack([np.ones_like(total), total], axis=1)
        (intercept, slope), *_ = np.linalg.lstsq(line, target, rcond=None)
        rest = target - line @ (intercept, slope)
        level = max(float(np.sqrt(np.mean(rest**2))), 1e-9)
        spread = 10 * max(float(np.ptp(target)), level)
        if len(target) > EXACT:
            prior = Prior(float(intercept), float(slope), spread, _SLOPE, level)
            return KnotCurves.fit(damages, target, prior, TAUS, LENGTHS, [*product(RELATIVE_NOISES, NOISES)])
        best: tuple[float, Curves, Array] | None = None
        shared = {length: _shared(damages, damages, length) for length in LENGTHS}
        for tau, length in product(TAUS, LENGTHS):
            made = cls(float(intercept), float(slope), spread, tau, length, damages, np.zeros(len(target)))
            covariance = made._covariance(damages, shared[length])
            for relative, noise in product(RELATIVE_NOISES, NOISES):
                variances = (noise * level) ** 2 + (relative * slope * total) ** 2
                factor = cho_factor(covariance + np.diag(variances), lower=True)
                weights = cho_solve(factor, rest)
                likelihood = -0.5 * float(rest @ weights) - float(np.log(np.diag(factor[0])).sum())
                if best is None or likelihood > best[0]:
                    inverse = np.diag(cho_solve(factor, np.eye(len(target))))
                    found = cls(made.intercept, made.slope, spread, tau, length, damages, weights)
                    best = (likelihood, found, weights / inverse)
        assert best is not None
        return best[1], best[2]

    def forecast(self, damages: Array) -> Array:
        """Forecasts (m,) for the sites' damages (m, S)."""
        parts = [
            self._covariance(rows, _shared(rows, self.damages, self.length)) @ self.weights
            for rows in _blocks(damages)
        ]
        total: Array = self.intercept + self.slope * damages.sum(axis=1) + np.concatenate(parts)
        return total

    def by_site(self, damages: Array) -> Array:
        """What each site adds to the forecast, (m, S); with a constant their sum is the forecast."""
        refined = self.slope + (self.slope * _SLOPE) ** 2 * float(self.damages.sum(axis=1) @ self.weights)
        found = []
        for rows in _blocks(damages):
            likeness = _alike(rows, self.damages, self.length)
            factors = np.einsum("mns,ns,n->ms", likeness, self.damages, self.weights)
            found.append(rows * (refined + (self.slope * self.tau) ** 2 * factors))
        return np.concatenate(found)

    def _covariance(self, damages: Array, shared: Array) -> Array:
        """Prior covariance (m, n) of architectures with the fitted pairs; `shared` is what sites share."""
        totals = np.outer(damages.sum(axis=1), self.damages.sum(axis=1))
        slope: Array = self.slope**2 * (self.tau**2 * shared + _SLOPE**2 * totals)
        return self.spread**2 + slope

    def to_json(self) -> dict[str, Any]:
        scalars = {n: getattr(self, n) for n in ("intercept", "slope", "spread", "tau", "length")}
        return {**scalars, "damages": self.damages.tolist(), "weights": self.weights.tolist()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> AnyCurves:
        if "knots" in content:
            return KnotCurves.from_json(content)
        intercept, slope, spread, tau, length = (
            float(content[n]) for n in ("intercept", "slope", "spread", "tau", "length")
        )
        damages, weights = (np.array(content[n], dtype=np.float64) for n in ("damages", "weights"))
        return cls(intercept, slope, spread, tau, length, damages, weights)


def _shared(here: Array, there: Array, length: float) -> Array:
    """Σ_s d_s d'_s exp(-(log d_s - log d'_s)² / 2ℓ²) of damages (m, S) and (n, S), (m, n)."""
    return np.concatenate(
        [np.einsum("ms,mns,ns->mn", rows, _alike(rows, there, length), there) for rows in _blocks(here)]
    )


def _alike(here: Array, there: Array, length: float) -> Array:
    """How far a site's factor is the same at two damages, (m, n, S)."""
    return alike(here[:, None], there[None], length)


def _blocks(rows: Array) -> Iterator[Array]:
    for start in range(0, len(rows), _ROWS):
        yield rows[start : start + _ROWS]


AnyCurves = Curves | KnotCurves
"""Curves of few pairs, or of many."""
