"""The Marchenko-Pastur and Tracy-Widom laws.

Notation: shape (m, n), ``p = min``, ``q = max``, ``g = p / q``; ``variance`` is that of one entry of the noise
matrix. On the scale ``x = s^2 / (q variance)`` the Marchenko-Pastur law lives on
``[(1 - sqrt g)^2, (1 + sqrt g)^2]``; only the p non-trivial values are counted, so it has no atom at zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpfast.support import InvalidValueError, front_door

Array = NDArray[np.float64]

__all__ = [
    "MarchenkoPastur",
    "MarchenkoPasturEigenvalues",
    "TracyWidom",
    "largest_value_pvalue",
    "sigma_plus",
    "tracy_widom_threshold",
]

# Below this ratio the closed form of the CDF cancels; the series needs few terms there.
_SERIES_BELOW = 0.05


def _check(variance: float, shape: tuple[int, int]) -> None:
    if not (math.isfinite(variance) and variance > 0):
        raise InvalidValueError("variance", f"must be positive and finite, not {variance!r}")
    if len(shape) != 2 or not all(isinstance(side, int | np.integer) and side >= 1 for side in shape):
        raise InvalidValueError("shape", f"must be two positive integers, not {shape!r}")


def _sigmoid(logit: Array) -> Array:
    """``1 / (1 + exp(-logit))``; 0 where the exponential leaves the range of float64."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-logit))


def sigma_plus(variance: float, shape: tuple[int, int]) -> float:
    """Marchenko-Pastur upper edge on the singular-value scale, ``sqrt(variance) (sqrt(m) + sqrt(n))``.

    Examples
    --------
    >>> sigma_plus(1.0, (9, 16))
    7.0
    """
    return math.sqrt(variance) * (math.sqrt(shape[0]) + math.sqrt(shape[1]))


def _cdf_of_angle(phi: Array, g: float) -> Array:
    """CDF at ``x = 1 + g - 2 sqrt(g) cos(phi)``, phi in [0, pi]."""
    r = math.sqrt(g)
    if g < _SERIES_BELOW:
        terms = max(4, math.ceil(39 / abs(math.log(r))) if r > 0 else 4)
        j = np.arange(2, terms + 2)
        series = np.sin(np.multiply.outer(phi, j)) @ (r ** (j - 2.0) / j)
        return (phi + r * np.sin(phi) - (1 - g) * series) / np.pi
    half = 0.5 * phi
    angle = np.arctan2((1 + r) * np.sin(half), (1 - r) * np.cos(half))
    return (2 / np.pi) * ((1 + g) * phi / (4 * g) + np.sin(phi) / (2 * r) - (1 - g) / (2 * g) * angle)


def _x_of_angle(phi: Array, g: float) -> Array:
    """``1 + g - 2 sqrt(g) cos(phi)`` without cancellation."""
    r = math.sqrt(g)
    x: Array = (1 - r) ** 2 + 4 * r * np.sin(0.5 * phi) ** 2
    return x


def _slope_of_angle(phi: Array, g: float) -> Array:
    x = _x_of_angle(phi, g)
    smooth = np.divide(np.sin(phi) ** 2, x, out=np.full(phi.shape, 2.0), where=x > 0)
    slope: Array = (2 / np.pi) * smooth
    return slope


def _unit_cdf(x: Array, g: float) -> Array:
    r = math.sqrt(g)
    low, high = (1 - r) ** 2, (1 + r) ** 2
    inside = np.clip(x, low, high)
    phi = 2 * np.arctan2(np.sqrt(inside - low), np.sqrt(high - inside))
    return np.where(x >= high, 1.0, np.where(x <= low, 0.0, _cdf_of_angle(phi, g)))


@lru_cache(maxsize=256)
def _angle_table(g: float) -> tuple[Array, Array]:
    phi = np.linspace(0, np.pi, 513)
    return _cdf_of_angle(phi, g), phi


def _unit_ppf(u: Array, g: float) -> Array:
    """Quantiles by Newton in the angle, started from a table."""
    levels, angles = _angle_table(g)
    # Both tails are like phi^3 (but the lower one of a square matrix): cube roots make them straight.
    lower = np.interp(np.cbrt(u), np.cbrt(levels), angles)
    upper = np.interp(-np.cbrt(1 - u), -np.cbrt(1 - levels), angles)
    phi = np.where(u < 0.5, lower, upper)
    for _ in range(6):
        slope = _slope_of_angle(phi, g)
        step = np.divide(_cdf_of_angle(phi, g) - u, slope, out=np.zeros(phi.shape), where=slope > 1e-12)
        phi = np.clip(phi - step, 0, np.pi)
    x = _x_of_angle(phi, g)
    return np.where(u <= 0, (1 - math.sqrt(g)) ** 2, np.where(u >= 1, (1 + math.sqrt(g)) ** 2, x))


@lru_cache(maxsize=256)
def unit_quantiles(p: int, q: int, start: float, stop: float, count: int) -> Array:
    """Quantiles of the unit law at ``count`` mid-points of [start, stop]; cached, read-only."""
    u = start + (stop - start) * (np.arange(count) + 0.5) / count
    quantiles = _unit_ppf(u, p / q)
    quantiles.flags.writeable = False
    return quantiles


@dataclass(frozen=True)
class MarchenkoPasturEigenvalues:
    """The Marchenko-Pastur law of ``s^2 / q``, q = max(shape); see `MarchenkoPastur`."""

    variance: float
    shape: tuple[int, int]

    @front_door
    def __post_init__(self) -> None:
        _check(self.variance, self.shape)

    @property
    def ratio(self) -> float:
        """``p / q``."""
        return min(self.shape) / max(self.shape)

    @property
    def support(self) -> tuple[float, float]:
        """Lower and upper edge."""
        r = math.sqrt(self.ratio)
        return self.variance * (1 - r) ** 2, self.variance * (1 + r) ** 2

    def pdf(self, x: ArrayLike) -> Array:
        """Density; 0 outside the support."""
        x = np.asarray(x, dtype=np.float64) / self.variance
        low, high = (edge / self.variance for edge in self.support)
        inside = (x > low) & (x < high)
        root = np.sqrt(np.where(inside, (high - x) * (x - low), 0.0))
        return np.divide(root, 2 * np.pi * self.ratio * x, out=np.zeros(x.shape), where=inside) / self.variance

    def cdf(self, x: ArrayLike) -> Array:
        """Distribution function; 1 at and above the upper edge."""
        return _unit_cdf(np.asarray(x, dtype=np.float64) / self.variance, self.ratio)

    @front_door
    def ppf(self, u: ArrayLike) -> Array:
        """Quantiles at probabilities ``u`` in [0, 1].

        Raises
        ------
        ValueError
            A probability is outside.
        """
        u = np.asarray(u, dtype=np.float64)
        if np.any((u < 0) | (u > 1)):
            raise InvalidValueError("u", "must lie in [0, 1]")
        return self.variance * _unit_ppf(u, self.ratio)


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
        _check(self.variance, self.shape)

    def eigenvalues(self) -> MarchenkoPasturEigenvalues:
        """The same law on the scale ``s^2 / q``."""
        return MarchenkoPasturEigenvalues(self.variance, self.shape)

    @property
    def support(self) -> tuple[float, float]:
        """Lower and upper edge, singular-value scale."""
        root = math.sqrt(self.variance)
        a, b = math.sqrt(min(self.shape)), math.sqrt(max(self.shape))
        return root * (b - a), root * (b + a)

    @property
    def sigma_plus(self) -> float:
        """Upper edge, singular-value scale."""
        return sigma_plus(self.variance, self.shape)

    def pdf(self, s: ArrayLike) -> Array:
        """Density per unit of s."""
        s = np.asarray(s, dtype=np.float64)
        q = max(self.shape)
        low, high = self.support
        inside = (s > low) & (s < high)
        root = np.sqrt(np.where(inside, (high**2 - s**2) * (s**2 - low**2), 0.0))
        scale = np.pi * self.variance * min(self.shape)
        value = np.divide(root, scale * s, out=np.zeros(s.shape), where=inside & (s > 0))
        if low == 0:
            value = np.where(s == 0, high / (np.pi * self.variance * q), value)
        return np.where(np.isnan(s), np.nan, value)

    def cdf(self, s: ArrayLike) -> Array:
        """Distribution function; 1 at and above ``sigma_plus``."""
        s = np.maximum(np.asarray(s, dtype=np.float64), 0)
        return self.eigenvalues().cdf(s**2 / max(self.shape))

    @front_door
    def ppf(self, u: ArrayLike) -> Array:
        """Quantiles at probabilities ``u``, singular-value scale; errors as `MarchenkoPasturEigenvalues.ppf`."""
        squares: Array = self.eigenvalues().ppf(u)
        return np.sqrt(max(self.shape) * squares)

    def rvs(self, size: int | tuple[int, ...] = 1, *, seed: int | np.random.Generator | None = None) -> Array:
        """Independent draws from the law (the singular values of one matrix are not independent: they repel)."""
        return self.ppf(np.random.default_rng(seed).random(size))


# logit of F1 at s = -8 (1/3) 8, from the Fredholm determinant det(1 - Ai(x + y + s)).
_TW_START, _TW_STEP = -8.0, 1 / 3
_TW_LOGIT = np.array(
    [
        -27.0394486, -24.1499333, -21.4803664, -19.0216385, -16.7646501, -14.7003127, -12.8195489, -11.1132891,
        -9.5724548, -8.1879074, -6.9503221, -5.8499499, -4.8762725, -4.0176537, -3.2611794, -2.5928482, -1.9981171,
        -1.4626192, -0.9728128, -0.5164033, -0.0825104, 0.338351, 0.7543874, 1.1726627, 1.5992109, 2.0391113,
        2.4965334, 2.9747704, 3.4762834, 4.0027695, 4.555259, 5.1342347, 5.7397581, 6.3715913, 7.0293003, 7.7123369,
        8.420098, 9.1519646, 9.9073264, 10.6855953, 11.4862116, 12.3086463, 13.1524011, 14.0170068, 14.9020212,
        15.8070275, 16.7316317, 17.675461, 18.6381622,
    ]
)  # fmt: skip


@lru_cache(maxsize=1)
def _tracy_widom_spline() -> Array:
    """Second derivatives of the not-a-knot cubic spline through the table."""
    y, h, n = _TW_LOGIT, _TW_STEP, len(_TW_LOGIT)
    A = np.zeros((n, n))
    rhs = np.zeros(n)
    for i in range(1, n - 1):
        A[i, i - 1 : i + 2] = (1, 4, 1)
        rhs[i] = 6 * (y[i - 1] - 2 * y[i] + y[i + 1]) / h**2
    A[0, :3] = A[-1, -3:] = (1, -2, 1)
    return np.asarray(np.linalg.solve(A, rhs), dtype=np.float64)


@dataclass(frozen=True)
class TracyWidom:
    """The Tracy-Widom law of order 1 (real matrices): fluctuations of the largest noise value.

    The CDF is interpolated from an embedded table, error at most 1e-6 on [-8, 8]; beyond, the logit continues linearly.

    Examples
    --------
    >>> print(f"{float(TracyWidom().ppf(0.9)):.4f}")
    0.4501
    """

    def _logit(self, s: Array) -> Array:
        z = (s - _TW_START) / _TW_STEP
        i = np.clip(np.floor(z), 0, len(_TW_LOGIT) - 2).astype(np.intp)
        t = np.clip(z - i, 0, 1)
        m = _tracy_widom_spline()
        y0, y1, m0, m1 = _TW_LOGIT[i], _TW_LOGIT[i + 1], m[i], m[i + 1]
        bend = ((1 - t) ** 3 - (1 - t)) * m0 + (t**3 - t) * m1
        inside = (1 - t) * y0 + t * y1 + _TW_STEP**2 / 6 * bend
        first = (_TW_LOGIT[1] - _TW_LOGIT[0]) / _TW_STEP
        last = (_TW_LOGIT[-1] - _TW_LOGIT[-2]) / _TW_STEP
        below = np.minimum(s - _TW_START, 0) * first
        above = np.maximum(s - _TW_START - _TW_STEP * (len(_TW_LOGIT) - 1), 0) * last
        logit: Array = inside + below + above
        return logit

    def cdf(self, s: ArrayLike) -> Array:
        """Distribution function."""
        return _sigmoid(self._logit(np.asarray(s, dtype=np.float64)))

    def sf(self, s: ArrayLike) -> Array:
        """Upper tail ``1 - cdf``, without cancellation."""
        return _sigmoid(-self._logit(np.asarray(s, dtype=np.float64)))

    @front_door
    def ppf(self, u: ArrayLike) -> Array:
        """Quantiles at probabilities in (0, 1); NaN at NaN.

        Raises
        ------
        ValueError
            A probability is not strictly between 0 and 1.
        """
        u = np.asarray(u, dtype=np.float64)
        if np.any((u <= 0) | (u >= 1)):
            raise InvalidValueError("u", "must lie strictly between 0 and 1")
        target = np.log(u / (1 - u))
        low: Array = np.full(u.shape, -40.0)
        high: Array = np.full(u.shape, 40.0)
        for _ in range(60):
            middle = 0.5 * (low + high)
            below = self._logit(middle) < target
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        quantiles: Array = np.where(np.isnan(target), np.nan, 0.5 * (low + high))[()]
        return quantiles


@lru_cache(maxsize=64)
def _tracy_widom_quantile(probability: float) -> float:
    return float(TracyWidom().ppf(probability))


def _largest_noise(shape: tuple[int, int]) -> tuple[float, float]:
    """Centre and scale of ``s^2 / (q variance)`` for the largest noise value: there it follows the Tracy-Widom law."""
    p, q = min(shape), max(shape)
    g = p / q
    edge = 1 + math.sqrt(g)
    return edge**2, q ** (-2 / 3) * g ** (-1 / 6) * edge ** (4 / 3)


@front_door
def tracy_widom_threshold(variance: float, shape: tuple[int, int], beta: float = 0.1) -> float:
    """Singular value that the largest of a pure noise matrix exceeds with probability about ``beta``.

    References
    ----------
    Johnstone, Annals of Statistics 29 (2001), without the finite-size shifts.
    """
    centre, scale = _largest_noise(shape)
    level = variance * (centre + _tracy_widom_quantile(1 - beta) * scale)
    return math.sqrt(max(max(shape) * level, 0.0))


def largest_value_pvalue(s: float, variance: float, shape: tuple[int, int]) -> float:
    """Probability that pure noise of ``variance`` has a largest singular value of at least ``s``."""
    centre, scale = _largest_noise(shape)
    return float(TracyWidom().sf((s * s / (max(shape) * variance) - centre) / scale))
