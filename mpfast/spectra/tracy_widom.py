"""The Tracy-Widom law of the largest singular value of noise, and what it makes of the Marchenko-Pastur edge."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpfast.spectra.marchenko_pastur import check_law, without_overflow
from mpfast.support import InvalidValueError, front_door

Array = NDArray[np.float64]

__all__ = ["TracyWidom", "largest_value_pvalue", "tracy_widom_threshold"]

# logit of F1 at s = -8 (1/3) 8, from the Fredholm determinant det(1 - Ai(x + y + s)).
_START, _STEP = -8.0, 1 / 3
# Beyond these the probability of a tail is no float64.
_RANGE = (-40.0, 128.0)
_FARTHEST = 1e6
_LOGITS = np.array(
    [
        -27.0394486, -24.1499333, -21.4803664, -19.0216385, -16.7646501, -14.7003127, -12.8195489, -11.1132891,
        -9.5724548, -8.1879074, -6.9503221, -5.8499499, -4.8762725, -4.0176537, -3.2611794, -2.5928482, -1.9981171,
        -1.4626192, -0.9728128, -0.5164033, -0.0825104, 0.338351, 0.7543874, 1.1726627, 1.5992109, 2.0391113,
        2.4965334, 2.9747704, 3.4762834, 4.0027695, 4.555259, 5.1342347, 5.7397581, 6.3715913, 7.0293003, 7.7123369,
        8.420098, 9.1519646, 9.9073264, 10.6855953, 11.4862116, 12.3086463, 13.1524011, 14.0170068, 14.9020212,
        15.8070275, 16.7316317, 17.675461, 18.6381622,
    ]
)  # fmt: skip


def _sigmoid(logit: Array) -> Array:
    """``1 / (1 + exp(-logit))``; 0 where the exponential leaves the range of float64."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-logit))


@lru_cache(maxsize=1)
def _spline() -> Array:
    """Second derivatives of the not-a-knot cubic spline through the table."""
    y, h, n = _LOGITS, _STEP, len(_LOGITS)
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
        z = (s - _START) / _STEP
        i = np.clip(np.floor(z), 0, len(_LOGITS) - 2).astype(np.intp)
        t = np.clip(z - i, 0, 1)
        m = _spline()
        y0, y1, m0, m1 = _LOGITS[i], _LOGITS[i + 1], m[i], m[i + 1]
        bend = ((1 - t) ** 3 - (1 - t)) * m0 + (t**3 - t) * m1
        inside = (1 - t) * y0 + t * y1 + _STEP**2 / 6 * bend
        end = _START + _STEP * (len(_LOGITS) - 1)
        below = _log_lower_tail(np.clip(s, -_FARTHEST, _START)) - _log_lower_tail(np.array(_START))
        above = _log_upper_tail(np.clip(s, end, _FARTHEST)) - _log_upper_tail(np.array(end))
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
        u = _checked(u)
        return self._inverse(np.log(u) - np.log1p(-u))

    def isf(self, u: ArrayLike) -> Array:
        """Inverse of `sf`: what is exceeded with probability ``u`` in (0, 1), however small; NaN at NaN.

        Raises
        ------
        ValueError
            A probability is not strictly between 0 and 1.
        """
        u = _checked(u)
        return self._inverse(np.log1p(-u) - np.log(u))

    def _inverse(self, target: Array) -> Array:
        """Where the logit of the distribution function is ``target``."""
        low: Array = np.full(target.shape, _RANGE[0])
        high: Array = np.full(target.shape, _RANGE[1])
        for _ in range(64):
            middle = 0.5 * (low + high)
            below = self._logit(middle) < target
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        quantiles: Array = np.where(np.isnan(target), np.nan, 0.5 * (low + high))[()]
        return quantiles


def _checked(u: ArrayLike) -> Array:
    probabilities = np.asarray(u, dtype=np.float64)
    if np.any((probabilities <= 0) | (probabilities >= 1)):
        raise InvalidValueError("u", "must lie strictly between 0 and 1")
    return probabilities


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
    check_law(variance, shape)
    centre, scale = _largest_noise(shape)
    unit = float(without_overflow(s, math.sqrt(variance) * math.sqrt(max(shape))))
    return float(TracyWidom().sf((unit * unit - centre) / scale))
