"""Optimal hard threshold and shrinkage of singular values (Gavish and Donoho)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpfast.spectra.marchenko_pastur import unit_quantiles
from mpfast.support import InvalidValueError, front_door

Array = NDArray[np.float64]

__all__ = ["optimal_threshold", "shrink"]

LOSSES = ("frobenius", "operator", "nuclear")


def _check(variance: float, shape: tuple[int, int]) -> None:
    if not (math.isfinite(variance) and variance >= 0):
        raise InvalidValueError("variance", f"must be finite and not negative, not {variance!r}")
    if len(shape) != 2 or min(shape) < 1:
        raise InvalidValueError("shape", f"must be two positive integers, not {shape!r}")


@front_door
def optimal_threshold(shape: tuple[int, int], *, variance: float | None = None, median: float | None = None) -> float:
    """Hard threshold with the smallest worst-case mean squared error, singular-value scale.

    Parameters
    ----------
    shape
        (m, n).
    variance
        Of one noise entry; or
    median
        the median singular value of the noisy matrix, from which the variance is estimated.

    Returns
    -------
    float
        Keep the singular values above it, drop the rest.

    Raises
    ------
    ValueError
        Both or neither of ``variance`` and ``median`` are given, or one is negative or not finite.

    References
    ----------
    Gavish and Donoho, "The optimal hard threshold for singular values is 4/sqrt(3)", arXiv 1305.5870.

    Examples
    --------
    >>> print(f"{optimal_threshold((100, 100), variance=0.01):.6f}")
    2.309401
    """
    if (variance is None) == (median is None):
        raise InvalidValueError("", "give either variance or median")
    if median is not None and not (math.isfinite(median) and median >= 0):
        raise InvalidValueError("median", f"must be finite and not negative, not {median!r}")
    _check(0.0 if variance is None else variance, shape)
    p, q = min(shape), max(shape)
    g = p / q
    if variance is None:
        unit = float(median or 0.0) / math.sqrt(float(unit_quantiles(p, q, 0.0, 1.0, 1)[0]))
    else:
        unit = math.sqrt(q) * math.sqrt(variance)
    factor = math.sqrt(2 * (g + 1) + 8 * g / (g + 1 + math.sqrt(g * g + 14 * g + 1)))
    return factor * unit


@front_door
def shrink(s: ArrayLike, variance: float, shape: tuple[int, int], *, loss: str = "frobenius") -> Array:
    """Replace noisy singular values by the estimate that is optimal for ``loss``; 0 at and below the noise edge.

    Parameters
    ----------
    s
        Singular values of signal plus noise.
    variance, shape
        Of one noise entry; (m, n). Without noise, variance 0, every value is its own estimate.
    loss
        ``"frobenius"``, ``"operator"`` (the inverse of the spike map: an estimate of the signal's own singular value)
        or ``"nuclear"``.

    Returns
    -------
    array
        Float64, of the shape of ``s``.

    Raises
    ------
    ValueError
        ``loss`` is none of these, or the variance is negative or not finite.

    References
    ----------
    Gavish and Donoho, "Optimal shrinkage of singular values", arXiv 1405.7511.

    Examples
    --------
    >>> shrink([3.0, 20.5, 100.1], 1.0, (100, 100), loss="operator").round(2)
    array([ 0.  , 12.5 , 99.09])
    """
    if loss not in LOSSES:
        raise InvalidValueError("loss", f"must be 'frobenius', 'operator' or 'nuclear', not {loss!r}")
    _check(variance, shape)
    values = np.asarray(s, dtype=np.float64)
    if not np.isfinite(values).all():
        raise InvalidValueError("s", "has NaN or infinite values")
    if variance == 0:
        return values.copy()
    q = max(shape)
    g = min(shape) / q
    unit = math.sqrt(q) * math.sqrt(variance)
    r = math.sqrt(g)
    above = values > unit * (1 + r)
    # With y = s / unit, everything as a share of y, in t = 1 / y: nothing overflows, however large s is.
    t = np.divide(unit, values, out=np.zeros(values.shape), where=above)
    root = np.sqrt((1 - (1 + r) * t) * (1 + (1 + r) * t) * (1 - (1 - r) * t) * (1 + (1 - r) * t))
    x = np.sqrt(0.5 * (1 - (1 + g) * t**2 + root))
    if loss == "operator":
        share = x
    elif loss == "frobenius":
        share = root
    else:
        share = np.maximum(0.0, x**2 - (g * t**4 / x**2 + r * t**2 / x))
    return np.where(above, values * share, 0.0)
