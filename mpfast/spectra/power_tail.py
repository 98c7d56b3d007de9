"""Power laws in the tail of a distribution, from a lower end that is searched for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpfast.support import InvalidValueError, float_array, front_door

__all__ = ["PowerLaw", "power_law"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PowerLaw:
    """A fitted density ``(alpha - 1) / xmin (x / xmin)^-alpha`` of the values from ``xmin`` on.

    Attributes
    ----------
    alpha : float
        The exponent, by maximum likelihood.
    sigma : float
        Its standard error were xmin known beforehand: ``(alpha - 1) / sqrt(tail)``.
    D : float
        Kolmogorov distance of the tail to the law, from the lower steps of the empirical distribution.
    xmin, xmax : float
        Smallest and largest value of the tail.
    tail : int
        Number of values in it.
    """

    alpha: float
    sigma: float
    D: float
    xmin: float
    xmax: float
    tail: int


@front_door
def power_law(
    x: ArrayLike, *, xmin: float | None = None, xmax: float = math.inf, unbiased: bool = False, least: int = 2
) -> PowerLaw:
    """Fit a power law to the tail of positive values, from the value on that makes the Kolmogorov distance least.

    A search over so many tails finds a good one in any sample: a small D alone says little, and alpha follows xmin.

    Parameters
    ----------
    x : array_like, shape (n,)
        The values, in any order and unit; those that are not positive are left out.
    xmin : float, optional
        Where the tail begins, which is then not searched for: at the smallest value that is no smaller.
    xmax : float
        Values above this are left out; the law that is fitted does not end there.
    unbiased : bool
        Correct the exponent for the size of the tail: ``(tail - 1) / sum log(x / xmin)`` in the place of
        ``tail / sum log(x / xmin)``.
    least : int
        Fewest values in a tail, 2 or more; all values are one where there are no more.

    Returns
    -------
    PowerLaw

    Raises
    ------
    ValueError
        There are no two different values to fit, or an option is out of range.

    References
    ----------
    Clauset, Shalizi, Newman, "Power-law distributions in empirical data", arXiv 0706.1062, eqs. 3.1 and 3.9.

    Examples
    --------
    >>> import numpy as np
    >>> shares = (np.arange(1000) + 0.5) / 1000
    >>> tail = 3 * (1 - shares) ** (-1 / 1.5)  # density x^-2.5 from 3 on
    >>> fit = power_law(np.concatenate([np.linspace(0.1, 3, 500), tail]))
    >>> round(fit.alpha, 1), round(fit.xmin), fit.D < 0.01
    (2.5, 3, True)
    """
    values = float_array(x, "x").ravel()
    if not np.isfinite(values).all():
        raise InvalidValueError("x", "must be finite")
    if not least >= 2:
        raise InvalidValueError("least", f"must be 2 at least, not {least!r}")
    values = np.sort(values[(values > 0) & (values <= xmax)])
    if xmin is not None:
        values = values[values >= xmin]
    if len(values) < 2 or values[0] == values[-1]:
        raise InvalidValueError(
            "x", "must have two different positive values, between xmin and xmax where they are given"
        )
    starts = np.unique(values, return_index=True)[1][:-1]
    starts = starts[:1] if xmin is not None else starts[starts <= max(0, len(values) - least)]
    found = min(_tails(values, starts, unbiased), key=lambda tail: tail[0], default=None)
    if found is None:
        raise InvalidValueError("x", "has no tail that a power law could be fitted to")
    distance, alpha, start = found
    tail = len(values) - start
    return PowerLaw(alpha, (alpha - 1) / math.sqrt(tail), distance, float(values[start]), float(values[-1]), tail)


def _tails(values: Array, starts: NDArray[np.intp], unbiased: bool) -> Iterator[tuple[float, float, int]]:
    """Distance, exponent and first value of the tails that begin at `starts`; `values` are ascending."""
    logs = np.log(values)
    sums = np.cumsum(logs[::-1])[::-1]
    below = np.arange(len(values)) / len(values)
    for start in starts.tolist():
        tail = len(values) - start
        excess = float(sums[start] - tail * logs[start])
        if not excess > 0:
            continue
        alpha = 1 + (tail - 1 if unbiased else tail) / excess
        law = -np.expm1((1 - alpha) * (logs[start:] - logs[start]))
        steps = (below[start:] - below[start]) * (len(values) / tail)
        yield float(np.abs(law - steps).max()), alpha, start
