"""The additive model: damage as a sum over features, each contributing with the law's sign.

Cuts of different sites add up, nearly, in log PPL. Every feature grows when any site is cut further,
so a sum of features and of their squares with weights of one sign is monotone in every site, and
convex where the squares weigh. Non-negative ridge regression (Lawson & Hanson 1974, "Solving least
squares problems", chapter 23, on rows augmented by the penalty).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

Array = NDArray[np.float64]
PENALTIES = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Penalties of squared weights, in the target's variance a pair: the best in cross-validation is taken."""
_FOLDS = 5
_TRUST = 1e-4  # of the penalty remains for trusted features


@dataclass(frozen=True)
class Additive:
    """target = intercept + Σ weights · (features, their squares), (2 F,) weights."""

    intercept: float
    weights: Array

    @classmethod
    def fit(
        cls, features: Array, target: Array, sign: int, seed: int, trusted: NDArray[np.bool_] | None = None
    ) -> Additive:
        """Fit on features (n, F), all at least 0, and a target (n,).

        `sign` is that of every weight: +1 or -1, or 0 where no law holds and any weight may be.
        The `trusted` features (F,) carry next to no penalty: they explain what they can before others.
        """
        terms = _terms(features)
        scale = terms.max(axis=0)
        varied = np.ptp(terms, axis=0) > 0
        free = np.zeros(features.shape[1], dtype=bool) if trusted is None else trusted
        relief = np.where(np.concatenate([free, free]), _TRUST, 1.0)[varied]
        scaled = terms[:, varied] / scale[varied]
        folds = np.random.default_rng(seed).permutation(len(target)) % min(_FOLDS, len(target))

        def error(penalty: float) -> float:
            total = 0.0
            for fold in range(folds.max() + 1):
                intercept, weights = _solve(
                    scaled[folds != fold], target[folds != fold], sign, penalty * relief
                )
                missed = scaled[folds == fold] @ weights + intercept - target[folds == fold]
                total += float(missed @ missed)
            return total

        intercept, found = _solve(scaled, target, sign, min(PENALTIES, key=error) * relief)
        weights = np.zeros(terms.shape[1])
        weights[varied] = found / scale[varied]
        return cls(intercept, weights)

    def forecast(self, features: Array) -> Array:
        """Forecasts (n,) for features (n, F)."""
        return _terms(features) @ self.weights + self.intercept

    def to_json(self) -> dict[str, Any]:
        return {"intercept": self.intercept, "weights": self.weights.tolist()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Additive:
        return cls(float(content["intercept"]), np.array(content["weights"], dtype=np.float64))


def _terms(features: Array) -> Array:
    return np.hstack([features, features * features])


def _solve(terms: Array, target: Array, sign: int, penalties: Array) -> tuple[float, Array]:
    """Intercept and weights (T,) that minimise the squared error plus `penalties` (T,) · their squares."""
    center, mean = terms.mean(axis=0), float(target.mean())
    left = np.vstack([terms - center, np.diag(np.sqrt(penalties))])
    right = np.concatenate([target - mean, np.zeros(terms.shape[1])])
    if sign == 0:
        weights = np.linalg.lstsq(left, right, rcond=None)[0]
    else:
        weights = sign * nnls(left, sign * right, maxiter=100 * terms.shape[1])[0]
    return mean - float(center @ weights), weights
