"""The edge fit of the code published with arXiv 2606.02608, for comparison only.

Differences from `mpfast.spectra.edge`: quantiles are taken at i/p instead of the mid-points (the variance comes out up
to 3 % high on small matrices); the Tracy-Widom term has ``(1 + sqrt g)**4 / 3`` for the exponent 4/3; the distribution
function is 0 instead of 1 above the edge, which makes the fit error jump to about ``1 - alpha``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpfast.spectra.marchenko_pastur import MarchenkoPasturEigenvalues
from mpfast.spectra.tracy_widom import TracyWidom

Array = NDArray[np.float64]


# Tracy-Widom quantiles of the package that code calls (TracyWidom 0.4.0), up to 1.5e-3 off the exact ones.
_LEVELS = np.array([0.01, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.99])
_QUANTILES = np.array(
    [-3.896944, -3.180776, -2.782644, -2.283277, -1.268621, -0.165340, 0.450123, 0.979297, 2.023439]
)  # fmt: skip


@dataclass(frozen=True)
class PublishedFit:
    """Variance of an entry, threshold (the authors' "Splus", singular-value scale) and fit error."""

    variance: float
    threshold: float
    error: float


def fit(values: Array, shape: tuple[int, int], alpha: float, beta: float, *, fixed_cdf: bool = False) -> PublishedFit:
    """Fit all singular values, descending; ``fixed_cdf`` takes the distribution function as 1 above the edge."""
    p, q = min(shape), max(shape)
    ascending = values[::-1] ** 2 / q
    window = np.arange(int(alpha * p), int((1 - alpha) * p))
    unit = MarchenkoPasturEigenvalues(1.0, shape)
    x = unit.ppf(window / p)
    variance = float(x @ ascending[window] / (x @ x))
    inside = ascending[window]
    F = MarchenkoPasturEigenvalues(variance, shape).cdf(inside)
    if not fixed_cdf:
        F = np.where(inside >= variance * (1 + math.sqrt(p / q)) ** 2, 0.0, F)
    expected = alpha + (1 - 2 * alpha) * np.arange(len(window)) / len(window)
    return PublishedFit(variance, published_threshold(variance, shape, beta), float(np.abs(F - expected).max()))


def published_threshold(variance: float, shape: tuple[int, int], beta: float) -> float:
    """Tracy-Widom corrected edge with the slip of operator precedence, singular-value scale."""
    p, q = min(shape), max(shape)
    g = p / q
    law = TracyWidom()
    t = float(law.ppf(1 - beta) + np.interp(1 - beta, _LEVELS, _QUANTILES - law.ppf(_LEVELS)))
    edge = 1 + math.sqrt(g)
    return math.sqrt(max(q * variance * (edge**2 + t * q ** (-2 / 3) * g ** (-1 / 6) * edge**4 / 3), 0.0))
