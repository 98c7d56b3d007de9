"""The edge fit of the code published with arXiv 2606.02608, for comparison only.

Differences from `mpfast.edge`: quantiles are taken at i/p instead of the mid-points (the variance comes out up to 3
% high
on small matrices); the Tracy-Widom term has ``(1 + sqrt g)**4 / 3`` for the exponent 4/3; the distribution function
is 0
instead of 1 above the edge, which makes the fit error jump to about ``1 - alpha``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpfast import laws

Array = NDArray[np.float64]


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
    unit = laws.MarchenkoPasturEigenvalues(1.0, shape)
    x = unit.ppf(window / p)
    variance = float(x @ ascending[window] / (x @ x))
    threshold = laws.tracy_widom_threshold(variance, shape, beta, exponent=False)
    inside = ascending[window]
    F = laws.MarchenkoPasturEigenvalues(variance, shape).cdf(inside)
    if not fixed_cdf:
        F = np.where(inside >= variance * (1 + math.sqrt(p / q)) ** 2, 0.0, F)
    expected = alpha + (1 - 2 * alpha) * np.arange(len(window)) / len(window)
    return PublishedFit(variance, threshold, float(np.abs(F - expected).max()))
