"""How far Ritz values may be off the singular values they stand for, and vectors off theirs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["EQUAL", "angles", "error_bounds", "groups", "may_hide_equal_ones", "relative_errors"]

Array = NDArray[np.float64]

# As many Ritz values as the block is wide, within so many of their residuals, may be all that it shows of more.
CROWD = 16.0
# As many singular values as the block is wide, closer together than this, may be all that it shows of more equal ones.
EQUAL = 1e-4


def may_hide_equal_ones(theta: Array, width: int) -> bool:
    """Whether as many Ritz values (scale s^2, descending) as the block is wide are equal and not zero.

    Of a single vector nothing can be said.
    """
    if width < 2 or len(theta) < width:
        return False
    first, last = theta[: len(theta) - width + 1], theta[width - 1 :]
    return bool(np.any((last > 0) & (first - last <= 2 * EQUAL * first)))


def _may_hide_others(theta: Array, residual: Array, width: int) -> NDArray[np.bool_]:
    """Which of the leading values have as many around them as the block is wide, all nearer than they are settled.

    A block shows no more than that of a cluster at first, each of them somewhere within it.
    """
    if width < 2 or len(theta) < width:
        return np.zeros(len(residual), dtype=np.bool_)
    spans = np.pad(theta[: len(theta) - width + 1] - theta[width - 1 :], width - 1, constant_values=np.inf)
    tightest = np.lib.stride_tricks.sliding_window_view(spans, width).min(axis=1)
    crowded: NDArray[np.bool_] = tightest[: len(residual)] <= CROWD * residual
    return crowded


def error_bounds(theta: Array, residual: Array, count: int, width: int) -> Array:
    """Bounds of the distance from each of the leading ``count`` values to a singular value, relative."""
    if count >= len(theta):
        return np.full(1, np.inf)
    head = theta[:count]
    return np.divide(residual[:count], 2 * head, out=np.zeros(count), where=head > 0)


def relative_errors(theta: Array, residual: Array, count: int, width: int) -> Array:
    """Estimated relative errors of the leading ``count`` singular values.

    A Ritz value of a block method errs by about ``residual^2 / gap`` and never by more than the residual. Until it has
    settled the gap is taken to the value ``width`` places further down; once its residual is within that gap, what its
    residual couples it to lies deeper in the spectrum. Compared with exact values this overestimates two- to fourfold.
    Where values may hide the gap is unknown, and only the residual counts.
    """
    if count >= len(theta):
        return np.full(1, np.inf)
    head, r = theta[:count], residual[:count]
    near, far = (theta[np.minimum(np.arange(count) + k * width, len(theta) - 1)] for k in (1, 3))
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = np.where(r < head - near, head - far, head - near)
        error = np.where(_may_hide_others(theta, r, width), r, np.minimum(r, r * r / gap)) / (2 * head)
    return np.where(head > 0, error, 0.0)


def groups(s: Array, together: float) -> NDArray[np.intp]:
    """Where values, descending, begin that do not lie within the share ``together`` of the one before."""
    return np.flatnonzero(np.concatenate([[True], s[:-1] - s[1:] > together * s[:-1]]))


def angles(s: Array, residuals: Array, beyond: float, together: float) -> Array:
    """Bound the angles, in radians, between approximate singular vectors and the true ones, left or right.

    Values of which one lies within the share ``together`` of the next are one group, which has a space and not each a
    vector: the bound is that of the angle between the space found and the true one, the same for all of the group.

    Parameters
    ----------
    s
        Approximate singular values, descending, shape (k,).
    residuals
        The larger of the two of each triplet, on the scale of the values, shape (k,).
    beyond
        What no other singular value exceeds.
    together
        Relative.

    Returns
    -------
    array
        Shape (k,); pi / 2 where nothing is known.

    References
    ----------
    Wedin, "Perturbation bounds in connection with singular value decomposition" (1972): the sine is at most the norm of
    all residuals of the space over the gap to the other values, which lie within their residuals of their estimates.
    """
    if len(s) == 0:
        return np.empty(0)
    first = groups(s, together)
    last = np.append(first[1:], len(s)) - 1
    above = np.concatenate([[np.inf], (s - residuals)[last[:-1]]])
    below = np.append((s + residuals)[first[1:]], beyond)
    gap = np.minimum(above - s[first], s[last] - below)
    # Of both sides: each triplet has two residuals.
    norm = np.sqrt(2 * np.add.reduceat(residuals**2, first))
    sine = np.divide(norm, gap, out=np.ones(len(first)), where=gap > norm)
    return np.repeat(np.arcsin(sine), last - first + 1)
