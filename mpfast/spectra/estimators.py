"""The variance of the noise from a spectrum, and how far the spectrum is from the law of that variance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mpfast.spectra.distribution import Measure
from mpfast.spectra.marchenko_pastur import MarchenkoPastur, sigma_plus, unit_quantiles
from mpfast.spectra.noise import NoiseProfile
from mpfast.spectra.tracy_widom import tracy_widom_threshold

Array = NDArray[np.float64]

__all__ = [
    "DEFAULT_ALPHA",
    "ESTIMATORS",
    "FAIR_KS",
    "GOOD_KS",
    "Sample",
    "SpectrumLike",
    "bema",
    "count_above",
    "distance_of_chance",
    "fitted_part",
    "kolmogorov",
    "residual",
]

#: Share of the singular values at either end that a fit leaves out.
DEFAULT_ALPHA = 0.25
#: Kolmogorov distances up to which a spectrum of many values follows the law well, and fairly.
GOOD_KS, FAIR_KS = 0.02, 0.05
# Quantiles at which BEMA looks at a measured distribution; more change nothing within its noise.
QUANTILES = 512
# False-alarm level of the threshold above which `bema-counted` leaves values out, and the share of them that may be.
COUNTED_BETA = 0.1
COUNTED_SHARE = 0.25


class Sample(Protocol):
    """The distribution of the singular values of a matrix of shape (m, n), and all of them where they are known."""

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def values(self) -> Array | None: ...
    @property
    def measure(self) -> Measure: ...


class SpectrumLike(Sample, Protocol):
    """What a fit needs to know of a spectrum; see `mpfast.Spectrum`."""

    @property
    def dtype(self) -> str: ...
    @property
    def fro_norm(self) -> float: ...
    @property
    def replicates(self) -> tuple[Measure, ...]: ...
    @property
    def ritz(self) -> Array: ...
    @property
    def resolved(self) -> int: ...
    @property
    def resolution(self) -> float: ...
    @property
    def rounding(self) -> float: ...
    @property
    def extra_error(self) -> float: ...
    @property
    def probes(self) -> int: ...
    @property
    def noise(self) -> NoiseProfile | None: ...


@dataclass(frozen=True)
class _Part:
    """A spectrum without some of its values."""

    shape: tuple[int, int]
    values: Array | None
    measure: Measure


def _window(p: int, alpha: float) -> tuple[int, int]:
    """First and one past the last ascending index of the central window; all when it would hold fewer than 8."""
    first, last = math.floor(alpha * p), math.floor((1 - alpha) * p)
    return (first, last) if last - first >= 8 else (0, p)


def bema(source: Sample, measure: Measure, alpha: float) -> float:
    """Least squares of central quantiles on those of the unit law, through the origin."""
    p, q = min(source.shape), max(source.shape)
    if source.values is not None:
        first, last = _window(p, alpha)
        observed = source.values[::-1][first:last] ** 2 / q
        unit = unit_quantiles(p, q, first / p, last / p, last - first)
    else:
        u = alpha + (1 - 2 * alpha) * (np.arange(QUANTILES) + 0.5) / QUANTILES
        observed = measure.quantile(u) ** 2 / q
        unit = unit_quantiles(p, q, alpha, 1 - alpha, QUANTILES)
    return float(unit @ observed / (unit @ unit))


def _counted(source: SpectrumLike, measure: Measure, alpha: float) -> float:
    """BEMA, and once more without the values above its threshold: these push the ranks of the others down."""
    part = _without_signals(source, measure, bema(source, measure, alpha))
    return bema(part, part.measure, alpha)


def _without_signals(source: SpectrumLike, measure: Measure, variance: float) -> Sample:
    """The values up to the threshold, as of a matrix of so many rows and columns fewer; all where that are too many."""
    m, n = source.shape
    p = min(m, n)
    count, _ = count_above(source, tracy_widom_threshold(variance, source.shape, COUNTED_BETA))
    if not 0 < count <= COUNTED_SHARE * p:
        return _Part(source.shape, source.values, measure)
    values = None if source.values is None else source.values[count:]
    return _Part((m - count, n - count), values, measure.without_largest(count / p))


def _median(source: SpectrumLike, measure: Measure, alpha: float) -> float:
    """Median of the values over the median of the unit law."""
    p, q = min(source.shape), max(source.shape)
    median = np.median(source.values) if source.values is not None else measure.quantile(0.5)
    return float(median**2 / q / unit_quantiles(p, q, 0.0, 1.0, 1)[0])


def residual(source: SpectrumLike, measure: Measure, alpha: float) -> float:
    """Frobenius norm minus the spikes, self-consistently.

    Right for a Marchenko-Pastur bulk with separate spikes; on heteroscedastic noise or trained layers the loop peels
    the continuum off and ends too low. A diagnostic there, not an edge.
    """
    m, n = source.shape
    p = min(m, n)
    total = p * measure.moment(2)
    variance = total / (m * n)
    for _ in range(100):
        edge = sigma_plus(variance, source.shape)
        above = measure.nodes > edge
        count = p * float(measure.weights[above].sum())
        peeled = p * float(measure.weights[above] @ measure.nodes[above] ** 2)
        updated = (total - peeled) / ((m - count) * (n - count)) if count < p else 0.0
        if updated <= 0:  # nothing is left below the edge
            return 0.0
        if abs(updated - variance) <= 1e-12 * variance:
            break
        variance = updated
    return float(variance)


ESTIMATORS: dict[str, Callable[[SpectrumLike, Measure, float], float]] = {
    "bema": bema,
    "bema-counted": _counted,
    "median": _median,
    "residual": residual,
}


def fitted_part(source: SpectrumLike, estimator: str, alpha: float) -> Sample:
    """What of the spectrum an estimator looks at: all of it, or what it has not counted as signals."""
    if estimator != "bema-counted":
        return source
    return _without_signals(source, source.measure, bema(source, source.measure, alpha))


def count_above(source: SpectrumLike, level: float) -> tuple[int, bool]:
    """Number of singular values above ``level``, and whether it had to be read off the distribution function."""
    if source.values is not None:
        return int(np.count_nonzero(source.values > level)), False
    count = int(np.count_nonzero(source.ritz > level))
    if count <= source.resolved:
        return count, False
    p = min(source.shape)
    return max(round(p * (1 - float(source.measure.cdf(level)))), source.resolved), True


def distance_of_chance(p: int) -> float:
    """Kolmogorov distance that 98 of 100 spectra of p singular values of noise do not exceed, p from 16 to 192.

    Eigenvalues repel each other: how many lie below a point scatters by about the logarithm of p, not by its root.
    """
    return (0.6 + 0.5 * math.log(p)) / p


def kolmogorov(source: Sample, variance: float, alpha: float) -> float:
    """Two-sided Kolmogorov distance to the law over the central window."""
    p = min(source.shape)
    if variance <= 0:
        return 1.0
    law = MarchenkoPastur(variance, source.shape)
    if source.values is not None:
        first, last = _window(p, alpha)
        F = law.cdf(source.values[::-1][first:last])
        i = np.arange(first, last)
        return float(np.maximum(np.abs(F - i / p), np.abs(F - (i + 1) / p)).max())
    u = np.linspace(alpha, 1 - alpha, QUANTILES)
    return float(np.abs(law.cdf(source.measure.quantile(u)) - u).max())
