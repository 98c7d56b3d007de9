"""Second moments of few inputs, made better: what the sample gets wrong is seen by parts of it that are kept apart.

A second moment ``C`` of n inputs in d dimensions has eigenvalues that are spread too far, the small ones being far too
small: for independent inputs Marchenko and Pastur's law says by how much. Inputs of a layer are correlated over a text,
so that no formula which takes n at its word fits; parts of the data that are contiguous see the true errors.

All work on the correlations, ``C`` with its diagonal scaled to one, so that units of single inputs do not matter.

References
----------
Ledoit, O. and Peche, S. (2011), "Eigenvectors of some large sample covariance matrix ensembles": the best eigenvalues
for given eigenvectors, of which cross-validated ones are an estimate. Bartz, D. (2016), "Cross-validation based
nonlinear shrinkage", arXiv:1611.00798.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import as_wide, like
from mpfast.support import InvalidValueError, front_door, thread_count

__all__ = ["clean", "diagonal_weight", "effective_rows", "shrink_to_diagonal"]

Matrix = NDArray[np.float64]

#: Weights of the diagonal that are tried.
_WEIGHTS = np.array([0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.17, 0.23, 0.3, 0.4, 0.5, 0.65, 0.8, 0.95])


@front_door
def shrink_to_diagonal(C: Any, weight: float) -> Any:
    """Return ``(1 - weight) C + weight diag(C)``.

    Up to a factor this is C with ``weight / (1 - weight)`` of each diagonal entry added to it.

    Parameters
    ----------
    C : (d, d) array
        Second moment.
    weight : float
        In [0, 1].

    Returns
    -------
    (d, d) array
        float64, in the framework of C.

    Raises
    ------
    ValueError
        C is not square, or the weight out of range.
    """
    if not 0 <= weight <= 1:
        raise InvalidValueError("weight", f"must lie in [0, 1], not {weight!r}")
    moment = _square(C, "C")
    shrunk = (1 - weight) * moment
    np.fill_diagonal(shrunk, moment.diagonal())
    return like(shrunk, C)


@front_door
def clean(parts: Sequence[Any], rows: Sequence[int], *, threads: int | None = None) -> Any:
    """Return the second moment with cross-validated eigenvalues.

    Eigenvectors of the correlations of all parts but one are given the mean squares along them of that one; these, in
    order and averaged over the parts, are made to increase (isotonic regression) and become the eigenvalues of the
    correlations of all of them.

    Parameters
    ----------
    parts : sequence of (d, d) array
        Second moments of contiguous parts of the data, two or more, as `mpfast.checkpoints.MomentFile.fold` has them.
    rows : sequence of int
        How many inputs each has.
    threads : int, optional
        Number of threads; the result does not depend on it.

    Returns
    -------
    (d, d) array
        float64, in the framework of the parts.

    Raises
    ------
    ValueError
        There are fewer than two parts, or they do not fit together.

    Notes
    -----
    One full eigendecomposition for each part and one more.
    """
    moments, counts = _checked(parts, rows)
    scale = _scale(moments, counts)
    variances = np.zeros(len(scale))
    team = thread_count(threads)
    for number, count in enumerate(counts):
        vectors = _eigenvectors(_others(moments, counts, number), scale, team)[1]
        variances += count * _along(vectors, moments[number] / scale / scale[:, None], team)
    vectors = _eigenvectors(_mean(moments, counts), scale, team)[1]
    values = increasing(variances / counts.sum())
    correlations = _core.dense_product(np.ascontiguousarray(vectors.T), values[:, None] * vectors, team)
    return like(scale * correlations * scale[:, None], parts[0])


@front_door
def diagonal_weight(parts: Sequence[Any], rows: Sequence[int], *, threads: int | None = None) -> float:
    """Return the weight of the diagonal under which parts of the data are most likely, given the others.

    For each part the Gaussian likelihood of its inputs with the second moment of the others, shrunk to its diagonal, is
    known from the two matrices; of a fixed list of weights the one is taken for which the sum over the parts is the
    largest.

    Parameters
    ----------
    parts, rows, threads
        As in `clean`.

    Returns
    -------
    float
        For `shrink_to_diagonal`.

    Raises
    ------
    ValueError
        As `clean`.

    Notes
    -----
    The likeliest estimate is not the best one for every use: pruning wants less than that when data is short.
    """
    moments, counts = _checked(parts, rows)
    scale = _scale(moments, counts)
    losses = np.zeros(len(_WEIGHTS))
    team = thread_count(threads)
    for number, count in enumerate(counts):
        values, vectors = _eigenvectors(_others(moments, counts, number), scale, team)
        shrunk = (1 - _WEIGHTS[:, None]) * np.maximum(values, 0) + _WEIGHTS[:, None]
        variances = _along(vectors, moments[number] / scale / scale[:, None], team)
        losses += count * (variances / shrunk + np.log(shrunk)).sum(axis=1)
    return float(_WEIGHTS[losses.argmin()])


@front_door
def effective_rows(parts: Sequence[Any], rows: Sequence[int]) -> float:
    """Return how many independent inputs would leave correlations as uncertain as these are.

    The variance of correlations between the parts, over what independent Gaussian inputs give, ``(1 + r^2) / n``. At
    most the number of rows.

    Parameters
    ----------
    parts, rows
        As in `clean`.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        As `clean`.
    """
    moments, counts = _checked(parts, rows)
    scale = _scale(moments, counts)
    mean = _mean(moments, counts) / scale / scale[:, None]
    above = np.triu_indices(len(scale), 1)
    # A part of n_k rows scatters about the mean of all with the variance v (1 / n_k - 1 / n) where a row has v.
    spread = sum(float(((moment / scale / scale[:, None] - mean)[above] ** 2).sum()) for moment in moments)
    row_variance = spread / float((1 / counts - 1 / counts.sum()).sum())
    independent = float((1 + mean[above] ** 2).sum())
    return float(counts.sum()) * min(1.0, independent / row_variance if row_variance > 0 else 1.0)


def _square(C: Any, name: str) -> Matrix:
    moment = as_wide(C, name=name)
    if moment.ndim != 2 or moment.shape[0] != moment.shape[1] or not moment.size:
        raise InvalidValueError(name, f"must be square, not of shape {moment.shape}")
    return moment


def _checked(parts: Sequence[Any], rows: Sequence[int]) -> tuple[list[Matrix], Matrix]:
    moments = [_square(part, "parts") for part in parts]
    if len(moments) < 2:
        raise InvalidValueError("parts", f"must be two or more, not {len(moments)}", "collect moments with folds=4")
    if len({moment.shape for moment in moments}) > 1:
        raise InvalidValueError("parts", "differ in shape")
    if not all(np.isfinite(moment).all() for moment in moments):
        raise InvalidValueError("parts", "have entries that are NaN or infinite")
    counts = np.asarray(rows, np.float64)
    if counts.shape != (len(moments),) or not (counts > 0).all():
        raise InvalidValueError("rows", f"must be {len(moments)} positive numbers, one for each part")
    return moments, counts


def _mean(moments: list[Matrix], counts: Matrix) -> Matrix:
    return np.asarray(sum(n * moment for n, moment in zip(counts, moments, strict=True)) / counts.sum())


def _others(moments: list[Matrix], counts: Matrix, number: int) -> Matrix:
    others = [other for other in range(len(moments)) if other != number]
    return _mean([moments[other] for other in others], counts[others])


def _scale(moments: list[Matrix], counts: Matrix) -> Matrix:
    """Roots of the diagonal; 1 for an input that is always zero."""
    diagonal = _mean(moments, counts).diagonal()
    return np.where(diagonal > 0, np.sqrt(np.maximum(diagonal, 0)), 1.0)


def _eigenvectors(moment: Matrix, scale: Matrix, threads: int) -> tuple[Matrix, Matrix]:
    """Eigenvalues of the correlations, ascending, and eigenvectors as rows."""
    return _core.symmetric_eigenvectors(np.ascontiguousarray(moment / scale / scale[:, None]), threads)


def _along(vectors: Matrix, moment: Matrix, threads: int) -> Matrix:
    """Mean squares along the rows of `vectors`."""
    images = _core.dense_product(vectors, np.ascontiguousarray(moment), threads)
    return np.asarray(np.einsum("ki,ki->k", vectors, images))


def increasing(values: Matrix) -> Matrix:
    """The nearest sequence that does not decrease: pools of neighbours that are out of order become their means."""
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, size = float(value), 1
        while pools and pools[-1][0] >= mean:
            before, count = pools.pop()
            mean, size = (mean * size + before * count) / (size + count), size + count
        pools.append((mean, size))
    return np.repeat([mean for mean, _ in pools], [size for _, size in pools])
