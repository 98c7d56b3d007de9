"""A tail exponent that does not depend on the shape of a matrix: of square submatrices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import as_wide, check_matrix, raise_if_nonfinite
from mpfast.support import front_door, positive_integer, thread_count

__all__ = ["fixed_aspect_hill"]

Array = NDArray[np.float64]


@front_door
def fixed_aspect_hill(W: Any, *, positions: int = 5, threads: int | None = None) -> float:
    """Hill exponent of the squared singular values of square submatrices, all taken together (FARMS).

    A matrix that is long and thin has a narrower spectrum than a square one with the same kind of entries. Windows of
    half the smaller side, at even distances and overlapping, have one shape whatever that of the matrix is. The
    exponent is that of the larger half of all their squared singular values.

    Parameters
    ----------
    W
        (m, n), of any framework.
    positions
        Windows along each side, at least; as many as it takes to leave no row and column out.
    threads
        Number of threads; the result does not depend on it.

    Returns
    -------
    float
        ``1 + 1 / mean(log(s_i^2 / s_k^2))`` over the larger half; NaN where the matrix is zero or its smaller side is
        1, and 1 where more than half of the values are zero.

    Raises
    ------
    ValueError, TypeError
        W is no matrix of finite real numbers.

    References
    ----------
    Hu, Goel, Killiakov, Yang, Eigenspectrum Analysis of Neural Networks without Aspect Ratio Bias (arXiv 2506.06280).
    Its code takes windows of 2000 of Llama's 4096 columns at 10 or 15 places.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> [round(fixed_aspect_hill(rng.standard_normal((64, n))), 1) for n in (64, 512)]
    [2.1, 2.1]
    """
    team = thread_count(threads)
    weights = as_wide(W, name="W")
    check_matrix(weights.shape, "float64", "W")
    least = positive_integer(positions, "positions")
    side = min(weights.shape) // 2
    bad = ~np.isfinite(weights)
    if bad.any():
        row, column = np.unravel_index(int(bad.argmax()), bad.shape)
        raise_if_nonfinite("W", int(bad.sum()), (int(row), int(column)))
    largest = float(np.abs(weights).max())
    if side == 0 or not largest > 0:
        return math.nan
    scaled = weights / largest
    squares: list[Array] = []
    for top in _starts(weights.shape[0], side, least):
        band = scaled[top : top + side]
        for left in _starts(weights.shape[1], side, least):
            window = band[:, left : left + side]
            squares.append(np.maximum(_core.symmetric_eigenvalues(window @ window.T, team), 0.0))
    return _hill_of_half(np.sort(np.concatenate(squares)))


def _starts(length: int, side: int, least: int) -> list[int]:
    """Where windows begin: at even distances, from one end to the other, without gaps."""
    count = max(min(least, length - side + 1), -(-length // side))
    return sorted({round(at) for at in np.linspace(0, length - side, count)})


def _hill_of_half(ascending: Array) -> float:
    upper = ascending[len(ascending) // 2 :]
    # Rounding of the products, relative to the largest.
    if upper[0] <= len(upper) * np.finfo(np.float64).eps * upper[-1]:
        return 1.0
    return 1 + 1 / max(float(np.mean(np.log(upper / upper[0]))), 1e-6)
