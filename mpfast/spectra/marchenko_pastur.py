"""The Marchenko-Pastur law of the bulk: of singular values, and of their squares.

Notation: shape (m, n), ``p = min``, ``q = max``, ``g = p / q``; ``variance`` is that of one entry of the noise
matrix. On the scale ``x = s^2 / (q variance)`` the Marchenko-Pastur law lives on
``[(1 - sqrt g)^2, (1 + sqrt g)^2]``; only the p non-trivial values are counted, so it has no atom at zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpfast.support import InvalidValueError, front_door

Array = NDArray[np.float64]

__all__ = ["MarchenkoPastur", "MarchenkoPasturEigenvalues", "sigma_plus"]

# Below this ratio the closed form of the CDF cancels; the series needs few terms there.
_SERIES_BELOW = 0.05
# Below this share of `1 - sqrt(g)` both cancel, and the density is integrated: there it has no feature but phi^2.
_INTEGRAL_BELOW = 0.25
_POINTS, _POINT_WEIGHTS = (0.5 * x for x in np.polynomial.legendre.leggauss(12))
_POINTS = _POINTS + 0.5
# More steps than Newton's iteration takes, or bisection where it fails.
_MAX_STEPS = 60


def check_law(variance: float, shape: tuple[int, int]) -> None:
    """Raise InvalidValueError unless the variance is positive and finite, and the shape two positive integers."""
    if not (math.isfinite(variance) and variance > 0):
        raise InvalidValueError("variance", f"must be positive and finite, not {variance!r}")
    if len(shape) != 2 or not all(isinstance(side, int | np.integer) and side >= 1 for side in shape):
        raise InvalidValueError("shape", f"must be two positive integers, not {shape!r}")


def checked_probabilities(u: ArrayLike) -> Array:
    """Return probabilities in float64; InvalidValueError where one is outside [0, 1]."""
    probabilities = np.asarray(u, dtype=np.float64)
    if np.any((probabilities < 0) | (probabilities > 1)):
        raise InvalidValueError("u", "must lie in [0, 1]")
    return probabilities


def without_overflow(x: ArrayLike, scale: float) -> Array:
    """Return ``x / scale`` in float64; infinite, without a word, where that is beyond its range."""
    with np.errstate(over="ignore"):
        return np.asarray(x, dtype=np.float64) / scale


def sigma_plus(variance: float, shape: tuple[int, int]) -> float:
    """Marchenko-Pastur upper edge on the singular-value scale, ``sqrt(variance) (sqrt(m) + sqrt(n))``.

    Examples
    --------
    >>> sigma_plus(1.0, (9, 16))
    7.0
    """
    return math.sqrt(variance) * (math.sqrt(shape[0]) + math.sqrt(shape[1]))


class _Ratio(NamedTuple):
    """``g = p / q`` and ``1 - g``, which of an almost square matrix the rounding of g would spoil."""

    g: float
    rest: float

    @classmethod
    def of(cls, shape: tuple[int, int]) -> _Ratio:
        p, q = min(shape), max(shape)
        return cls(p / q, (q - p) / q)

    @property
    def root(self) -> float:
        return math.sqrt(self.g)

    @property
    def gap(self) -> float:
        """``1 - sqrt(g)``."""
        return self.rest / (1 + self.root)


def _cdf_of_angle(phi: Array, ratio: _Ratio) -> Array:
    """CDF at ``x = 1 + g - 2 sqrt(g) cos(phi)``, phi in [0, pi]; the lower tail to all its digits."""
    near = phi < _INTEGRAL_BELOW * ratio.gap
    value = np.array(_closed_cdf(phi, ratio))
    if np.any(near):
        small = phi[near]
        value[near] = small * (_slope_of_angle(np.multiply.outer(small, _POINTS), ratio) @ _POINT_WEIGHTS)
    return value


def _closed_cdf(phi: Array, ratio: _Ratio) -> Array:
    g, r = ratio.g, ratio.root
    if g < _SERIES_BELOW:
        terms = max(4, math.ceil(39 / abs(math.log(r))) if r > 0 else 4)
        j = np.arange(2, terms + 2)
        series = np.sin(np.multiply.outer(phi, j)) @ (r ** (j - 2.0) / j)
        return (phi + r * np.sin(phi) - ratio.rest * series) / np.pi
    half = 0.5 * phi
    angle = np.arctan2((1 + r) * np.sin(half), ratio.gap * np.cos(half))
    return (2 / np.pi) * ((1 + g) * phi / (4 * g) + np.sin(phi) / (2 * r) - ratio.rest / (2 * g) * angle)


def _x_of_angle(phi: Array, ratio: _Ratio) -> Array:
    """``1 + g - 2 sqrt(g) cos(phi)`` without cancellation."""
    x: Array = ratio.gap**2 + 4 * ratio.root * np.sin(0.5 * phi) ** 2
    return x


def _slope_of_angle(phi: Array, ratio: _Ratio) -> Array:
    x = _x_of_angle(phi, ratio)
    smooth = np.divide(np.sin(phi) ** 2, x, out=np.full(phi.shape, 2.0), where=x > 0)
    slope: Array = (2 / np.pi) * smooth
    return slope


def _unit_cdf(x: Array, ratio: _Ratio) -> Array:
    low, high = ratio.gap**2, (1 + ratio.root) ** 2
    inside = np.clip(x, low, high)
    phi = 2 * np.arctan2(np.sqrt(inside - low), np.sqrt(high - inside))
    return np.where(x >= high, 1.0, np.where(x <= low, 0.0, _cdf_of_angle(phi, ratio)))


@lru_cache(maxsize=256)
def _angle_table(ratio: _Ratio) -> tuple[Array, Array]:
    """Levels and angles; close together at the lower end too, where the law of an almost square matrix turns."""
    even = np.linspace(0, np.pi, 513)
    phi = np.concatenate([[0.0], np.geomspace(1e-12, even[1], 120), even[2:]])
    return np.maximum.accumulate(_cdf_of_angle(phi, ratio)), phi


def _angle_of_level(u: Array, ratio: _Ratio) -> Array:
    """Inverse of `_cdf_of_angle` by Newton's iteration from a table, kept within what is known to enclose it."""
    levels, angles = _angle_table(ratio)
    # Both tails are like phi^3 (but the lower one of a square matrix): cube roots make them straight.
    lower = np.interp(np.cbrt(u), np.cbrt(levels), angles)
    upper = np.interp(-np.cbrt(1 - u), -np.cbrt(1 - levels), angles)
    phi = np.where(u < 0.5, lower, upper)
    cell = np.clip(np.searchsorted(levels, u, side="right"), 1, len(levels) - 1)
    low, high = angles[cell - 1], angles[cell]
    moving = np.arange(len(u))
    for _ in range(_MAX_STEPS):
        at, target = phi[moving], u[moving]
        miss = _cdf_of_angle(at, ratio) - target
        low[moving] = np.where(miss < 0, at, low[moving])
        high[moving] = np.where(miss > 0, at, high[moving])
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            step = at - miss / _slope_of_angle(at, ratio)
        enclosed = (step >= low[moving]) & (step <= high[moving])
        phi[moving] = np.where(enclosed, step, 0.5 * (low[moving] + high[moving]))
        moving = moving[(np.abs(phi[moving] - at) > 2.0**-48 * at) & (np.abs(miss) > 2.0**-52 * target)]
        if len(moving) == 0:
            break
    return phi


def _unit_ppf(u: Array, ratio: _Ratio) -> Array:
    """Quantiles of the unit law."""
    levels = np.asarray(u, dtype=np.float64)
    known = (levels > 0) & (levels < 1)
    phi = np.where(levels <= 0, 0.0, np.where(levels >= 1, np.pi, np.nan))
    phi[known] = _angle_of_level(levels[known], ratio)
    return _x_of_angle(phi, ratio)


@lru_cache(maxsize=256)
def unit_quantiles(p: int, q: int, start: float, stop: float, count: int) -> Array:
    """Quantiles of the unit law at ``count`` mid-points of [start, stop]; cached, read-only."""
    u = start + (stop - start) * (np.arange(count) + 0.5) / count
    quantiles = _unit_ppf(u, _Ratio.of((p, q)))
    quantiles.flags.writeable = False
    return quantiles


@dataclass(frozen=True)
class MarchenkoPasturEigenvalues:
    """The Marchenko-Pastur law of ``s^2 / q``, q = max(shape); see `MarchenkoPastur`."""

    variance: float
    shape: tuple[int, int]

    @front_door
    def __post_init__(self) -> None:
        check_law(self.variance, self.shape)

    @property
    def ratio(self) -> float:
        """``p / q``."""
        return min(self.shape) / max(self.shape)

    @property
    def support(self) -> tuple[float, float]:
        """Lower and upper edge."""
        low, high = self._unit_support
        return self.variance * low, self.variance * high

    @property
    def _unit_support(self) -> tuple[float, float]:
        """Of the law with variance 1."""
        ratio = _Ratio.of(self.shape)
        return ratio.gap**2, (1 + ratio.root) ** 2

    def pdf(self, x: ArrayLike) -> Array:
        """Density; 0 outside the support."""
        x = without_overflow(x, self.variance)
        low, high = self._unit_support
        inside = (x > low) & (x < high)
        root = np.sqrt(np.where(inside, (high - x) * (x - low), 0.0))
        unit = np.divide(root, 2 * np.pi * self.ratio * x, out=np.zeros(x.shape), where=inside)
        return without_overflow(unit, self.variance)

    def cdf(self, x: ArrayLike) -> Array:
        """Distribution function; 1 at and above the upper edge."""
        return _unit_cdf(without_overflow(x, self.variance), _Ratio.of(self.shape))

    @front_door
    def ppf(self, u: ArrayLike) -> Array:
        """Quantiles at probabilities ``u`` in [0, 1].

        Raises
        ------
        ValueError
            A probability is outside.
        """
        return self.variance * _unit_ppf(checked_probabilities(u), _Ratio.of(self.shape))


@dataclass(frozen=True)
class MarchenkoPastur:
    """The Marchenko-Pastur law of the singular values of an m x n noise matrix.

    Parameters
    ----------
    variance
        Of one entry of the matrix.
    shape
        (m, n); the law is symmetric in them.

    Raises
    ------
    ValueError
        The variance is not positive and finite, or a side is not positive.

    References
    ----------
    Marchenko and Pastur (1967). The angle form of the CDF: with ``x = 1 + g - 2 sqrt(g) cos(phi)``,
    ``dF/dphi = (2/pi) sin(phi)^2 / x``.

    Examples
    --------
    >>> law = MarchenkoPastur(1.0, (100, 100))
    >>> law.sigma_plus
    20.0
    >>> print(f"{float(law.cdf(10.0)):.3f}")
    0.609
    """

    variance: float
    shape: tuple[int, int]

    @front_door
    def __post_init__(self) -> None:
        check_law(self.variance, self.shape)

    def eigenvalues(self) -> MarchenkoPasturEigenvalues:
        """The same law on the scale ``s^2 / q``."""
        return MarchenkoPasturEigenvalues(self.variance, self.shape)

    @property
    def support(self) -> tuple[float, float]:
        """Lower and upper edge, singular-value scale."""
        root = math.sqrt(self.variance)
        low, high = self._unit_support
        return root * low, root * high

    @property
    def _unit_support(self) -> tuple[float, float]:
        """Of the law with variance 1; the difference of the roots without cancellation."""
        p, q = min(self.shape), max(self.shape)
        high = math.sqrt(p) + math.sqrt(q)
        return (q - p) / high, high

    @property
    def sigma_plus(self) -> float:
        """Upper edge, singular-value scale."""
        return sigma_plus(self.variance, self.shape)

    def pdf(self, s: ArrayLike) -> Array:
        """Density per unit of s."""
        root = math.sqrt(self.variance)
        s = without_overflow(s, root)
        low, high = self._unit_support
        inside = (s > low) & (s < high)
        within = np.where(inside, s, low)
        height = np.sqrt((high - within) * (within - low)) * np.sqrt((high + within) * (within + low))
        value = np.divide(height, np.pi * min(self.shape) * s, out=np.zeros(s.shape), where=inside & (s > 0))
        if low == 0:
            value = np.where(s == 0, high / (np.pi * max(self.shape)), value)
        return np.where(np.isnan(s), np.nan, without_overflow(value, root))

    def cdf(self, s: ArrayLike) -> Array:
        """Distribution function; 1 at and above ``sigma_plus``."""
        unit = np.maximum(without_overflow(s, math.sqrt(self.variance) * math.sqrt(max(self.shape))), 0)
        return _unit_cdf(np.minimum(unit, 4.0) ** 2, _Ratio.of(self.shape))

    @front_door
    def ppf(self, u: ArrayLike) -> Array:
        """Quantiles at probabilities ``u``, singular-value scale; errors as `MarchenkoPasturEigenvalues.ppf`."""
        unit: Array = np.sqrt(MarchenkoPasturEigenvalues(1.0, self.shape).ppf(u))
        return math.sqrt(self.variance) * math.sqrt(max(self.shape)) * unit

    def rvs(self, size: int | tuple[int, ...] = 1, *, seed: int | np.random.Generator | None = None) -> Array:
        """Independent draws from the law (the singular values of one matrix are not independent: they repel)."""
        return self.ppf(np.random.default_rng(seed).random(size))
