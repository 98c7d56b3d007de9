"""The Marchenko-Pastur and Tracy-Widom laws.

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
# Below this share of `1 - sqrt(g)` both cancel, and the density is integrated: there it has no feature but phi^2.
_INTEGRAL_BELOW = 0.25
_POINTS, _POINT_WEIGHTS = (0.5 * x for x in np.polynomial.legendre.leggauss(12))
_POINTS = _POINTS + 0.5
# More steps than Newton's iteration takes, or bisection where it fails.
_MAX_STEPS = 60


def _check(variance: float, shape: tuple[int, int]) -> None:
    if not (math.isfinite(variance) and variance > 0):
        raise InvalidValueError("variance", f"must be positive and finite, not {variance!r}")
    if len(shape) != 2 or not all(isinstance(side, int | np.integer) and side >= 1 for side in shape):
        raise InvalidValueError("shape", f"must be two positive integers, not {shape!r}")


def _sigmoid(logit: Array) -> Array:
    """``1 / (1 + exp(-logit))``; 0 where the exponential leaves the range of float64."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-logit))


def _over(x: ArrayLike, scale: float) -> Array:
    """``x / scale`` in float64; infinite, without a word, where that is beyond its range."""
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
        _check(self.variance, self.shape)

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
        x = _over(x, self.variance)
        low, high = self._unit_support
        inside = (x > low) & (x < high)
        root = np.sqrt(np.where(inside, (high - x) * (x - low), 0.0))
        unit = np.divide(root, 2 * np.pi * self.ratio * x, out=np.zeros(x.shape), where=inside)
        return _over(unit, self.variance)

    def cdf(self, x: ArrayLike) -> Array:
        """Distribution function; 1 at and above the upper edge."""
        return _unit_cdf(_over(x, self.variance), _Ratio.of(self.shape))

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
        return self.variance * _unit_ppf(u, _Ratio.of(self.shape))


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
        s = _over(s, root)
        low, high = self._unit_support
        inside = (s > low) & (s < high)
        within = np.where(inside, s, low)
        height = np.sqrt((high - within) * (within - low)) * np.sqrt((high + within) * (within + low))
        value = np.divide(height, np.pi * min(self.shape) * s, out=np.zeros(s.shape), where=inside & (s > 0))
        if low == 0:
            value = np.where(s == 0, high / (np.pi * max(self.shape)), value)
        return np.where(np.isnan(s), np.nan, _over(value, root))

    def cdf(self, s: ArrayLike) -> Array:
        """Distribution function; 1 at and above ``sigma_plus``."""
        unit = np.maximum(_over(s, math.sqrt(self.variance) * math.sqrt(max(self.shape))), 0)
        return _unit_cdf(np.minimum(unit, 4.0) ** 2, _Ratio.of(self.shape))

    @front_door
    def ppf(self, u: ArrayLike) -> Array:
        """Quantiles at probabilities ``u``, singular-value scale; errors as `MarchenkoPasturEigenvalues.ppf`."""
        unit: Array = np.sqrt(MarchenkoPasturEigenvalues(1.0, self.shape).ppf(u))
        return math.sqrt(self.variance) * math.sqrt(max(self.shape)) * unit

    def rvs(self, size: int | tuple[int, ...] = 1, *, seed: int | np.random.Generator | None = None) -> Array:
        """Independent draws from the law (the singular values of one matrix are not independent: they repel)."""
        return self.ppf(np.random.default_rng(seed).random(size))


# logit of F1 at s = -8 (1/3) 8, from the Fredholm determinant det(1 - Ai(x + y + s)).
_TW_START, _TW_STEP = -8.0, 1 / 3
# Beyond these the probability of a tail is no float64.
_TW_RANGE = (-40.0, 128.0)
_TW_FARTHEST = 1e6
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


def _log_lower_tail(s: Array) -> Array:
    """Logarithm of F1 for s far below 0, but for a constant."""
    size = -s
    tail: Array = -(size**3) / 24 - size**1.5 / (3 * math.sqrt(2)) - np.log(size) / 16
    return tail


def _log_upper_tail(s: Array) -> Array:
    """Logarithm of 1 - F1 for s far above 0, but for a constant."""
    tail: Array = -(2 / 3) * s**1.5 - 0.75 * np.log(s)
    return tail


@dataclass(frozen=True)
class TracyWidom:
    """The Tracy-Widom law of order 1 (real matrices): fluctuations of the largest noise value.

    The CDF is interpolated from an embedded table, error at most 1e-6 on [-8, 8]; beyond, each tail continues by its
    asymptotic form.

    References
    ----------
    Baik, Buckingham, DiFranco, "Asymptotics of Tracy-Widom distributions and the total integral of a Painleve II
    function" (2008), for both tails.

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
        end = _TW_START + _TW_STEP * (len(_TW_LOGIT) - 1)
        below = _log_lower_tail(np.clip(s, -_TW_FARTHEST, _TW_START)) - _log_lower_tail(np.array(_TW_START))
        above = _log_upper_tail(np.clip(s, end, _TW_FARTHEST)) - _log_upper_tail(np.array(end))
        logit: Array = inside + below - above
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
        return self._inverse(np.log(u) - np.log1p(-u))

    def isf(self, u: ArrayLike) -> Array:
        """Inverse of `sf`: what is exceeded with probability ``u`` in (0, 1), however small; NaN at NaN.

        Raises
        ------
        ValueError
            A probability is not strictly between 0 and 1.
        """
        u = np.asarray(u, dtype=np.float64)
        if np.any((u <= 0) | (u >= 1)):
            raise InvalidValueError("u", "must lie strictly between 0 and 1")
        return self._inverse(np.log1p(-u) - np.log(u))

    def _inverse(self, target: Array) -> Array:
        """Where the logit of the distribution function is ``target``."""
        low: Array = np.full(target.shape, _TW_RANGE[0])
        high: Array = np.full(target.shape, _TW_RANGE[1])
        for _ in range(64):
            middle = 0.5 * (low + high)
            below = self._logit(middle) < target
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        quantiles: Array = np.where(np.isnan(target), np.nan, 0.5 * (low + high))[()]
        return quantiles


@lru_cache(maxsize=64)
def _exceeded_with(probability: float) -> float:
    return float(TracyWidom().isf(probability))


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
    level = centre + _exceeded_with(beta) * scale
    return math.sqrt(variance) * math.sqrt(max(max(shape) * level, 0.0))


def largest_value_pvalue(s: float, variance: float, shape: tuple[int, int]) -> float:
    """Probability that pure noise of ``variance`` has a largest singular value of at least ``s``."""
    _check(variance, shape)
    centre, scale = _largest_noise(shape)
    unit = float(_over(s, math.sqrt(variance) * math.sqrt(max(shape))))
    return float(TracyWidom().sf((unit * unit - centre) / scale))
