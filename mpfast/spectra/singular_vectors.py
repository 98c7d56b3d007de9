"""Methods that change or test the singular vectors of the bulk. They need a full SVD: for layers, not for models.

The paper reports them as marginal or negative; they are here so that this can be checked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import as_wide, check_matrix, like
from mpfast.spectra.edge import EdgeFit
from mpfast.spectra.krylov_svd import leading_triplets
from mpfast.spectra.measurement import spectrum
from mpfast.support import InvalidValueError, floor_count, front_door, package_missing, positive_integer, thread_count

__all__ = ["Randomness", "drop_bulk", "haar_sparsify", "randomness", "sparsify_vectors"]

Array = NDArray[np.float64]


@front_door
def drop_bulk(W: Any, share: float) -> Any:
    """Return W without the smallest singular values: of those below the edge, this share goes.

    Parameters
    ----------
    W
        2-D real array of any framework.
    share
        0 to 1. The paper's schedule for epoch t keeps ``max(0, 1 - t / 200)`` of them.

    Raises
    ------
    ValueError
        `share` is out of range, or as `mpfast.spectrum`.
    """
    if not 0 <= share <= 1:
        raise InvalidValueError("share", f"must lie in [0, 1], not {share!r}")
    U, s, Vh, edge = _decomposed(W)
    below = int(np.count_nonzero(s <= edge.sigma_plus))
    kept = len(s) - floor_count(share, below)
    return _recomposed(U[:, :kept], s[:kept], Vh[:kept], W)


@front_door
def sparsify_vectors(W: Any, theta: float, *, power: float = 30.0, least: float = 1 / 750) -> Any:
    """Return W with small entries of its singular vectors set to zero, the more of them the deeper in the bulk.

    Entries of the vectors of ``s_i`` below ``theta max(least, (1 - s_i / sigma_plus)_+^power)`` go. The result is
    dense: this changes values, not the number of weights.

    Parameters
    ----------
    W
        2-D real array of any framework.
    theta
        Largest threshold, for unit vectors.
    power, least
        As in the formula.

    Raises
    ------
    ValueError
        `theta` is negative, or as `mpfast.spectrum`.
    """
    if not theta >= 0:
        raise InvalidValueError("theta", f"must not be negative, not {theta!r}")
    U, s, Vh, edge = _decomposed(W)
    depth = _depth(s, edge)
    threshold = theta * np.maximum(least, depth**power)
    U = np.where(np.abs(U) < threshold, 0.0, U)
    Vh = np.where(np.abs(Vh) < threshold[:, None], 0.0, Vh)
    return _recomposed(U, s, Vh, W)


@front_door
def haar_sparsify(W: Any, z: float = 0.5, *, power: float = 3.0) -> Any:
    """Return W with those entries of bulk vectors set to zero that are small for random ones.

    A vector of length d that is uniform on the sphere has entries of about ``1 / sqrt(d)``; in the vectors of
    ``s_i < sigma_plus`` those below ``z (1 - s_i / sigma_plus)^power / sqrt(d)`` go.

    Parameters
    ----------
    W
        2-D real array of any framework.
    z
        In standard deviations. At depth 1 it sets ``2 Phi(z) - 1`` of the entries to zero: 38 % for 0.5. The paper
        scales z by a layer's Hill exponent over the mean of all layers: multiply it here.
    power
        As in the formula.

    Raises
    ------
    ValueError
        `z` is negative, or as `mpfast.spectrum`.
    """
    if not z >= 0:
        raise InvalidValueError("z", f"must not be negative, not {z!r}")
    U, s, Vh, edge = _decomposed(W)
    depth = _depth(s, edge) ** power * (s < edge.sigma_plus)
    U = np.where(np.abs(U) < z * depth / math.sqrt(len(U)), 0.0, U)
    Vh = np.where(np.abs(Vh) < z * depth[:, None] / math.sqrt(Vh.shape[1]), 0.0, Vh)
    return _recomposed(U, s, Vh, W)


@dataclass(frozen=True, eq=False)
class Randomness:
    """How random each singular triplet of a matrix looks; arrays over the triplets, in descending order of s.

    Attributes
    ----------
    s : array
        Singular values.
    above_edge : array of bool
        Whether they lie above the fitted edge.
    permutation_p : array
        ``(1 + number of permuted matrices whose i-th value is as large) / (1 + permutations)``.
    bootstrap_cv : array
        Coefficient of variation of s_i when rows are drawn with replacement.
    shapiro_p, dagostino_p : array, shape (2, k)
        Tests of normality of the entries of ``sqrt(d) u`` and ``sqrt(d) v``; Shapiro's is NaN beyond d = 5000.
    anderson : array, shape (2, k)
        Anderson and Darling's statistic for the same.
    peak : array, shape (2, k)
        Largest entry over ``sqrt(2 ln d / d)``, about 1 for a random vector.
    fourth_moment : array, shape (2, k)
        ``sum u^4`` over ``3 / (d + 2)``, 1 for a random vector, large for a localised one.
    score : array
        A ranking between 0 (structured) and 1 (random), the geometric mean of what is above. Not a p-value: its parts
        depend on each other.
    """

    s: Array
    above_edge: NDArray[np.bool_]
    permutation_p: Array
    bootstrap_cv: Array
    shapiro_p: Array
    dagostino_p: Array
    anderson: Array
    peak: Array
    fourth_moment: Array
    score: Array


@front_door
def randomness(
    W: Any, *, vectors: int | None = None, permutations: int = 20, bootstraps: int = 20, seed: int = 0
) -> Randomness:
    """Test the leading singular triplets for being noise. Needs SciPy.

    Parameters
    ----------
    W
        2-D real array of any framework, at least 20 rows and columns.
    vectors
        How many triplets; default all.
    permutations, bootstraps
        How many resampled matrices: each costs its singular values.
    seed
        Of the resampling.

    Raises
    ------
    ValueError
        W is too small, `vectors` is not positive, or as `mpfast.spectrum`.
    ImportError
        SciPy is missing.

    References
    ----------
    The battery of arXiv 2606.02608's code, with three corrections: p-values of permutations cannot be 0, Fisher's
    combination of dependent tests is replaced by their geometric mean, and Shapiro's test is left out where its
    approximation ends.
    """
    try:
        from scipy import stats
    except ImportError:
        raise package_missing("randomness()", "scipy") from None
    U, s, Vh, edge = _decomposed(W)
    if min(len(U), Vh.shape[1]) < 20:
        raise InvalidValueError("W", f"must have at least 20 rows and columns, not {(len(U), Vh.shape[1])}")
    k = len(s) if vectors is None else min(positive_integer(vectors, "vectors"), len(s))
    dense = _core.dense_product(U * s, Vh, thread_count(None))
    rng = np.random.default_rng(seed)
    as_large = np.zeros(k)
    for _ in range(positive_integer(permutations, "permutations", optional=False)):
        as_large += _values(rng.permuted(dense.reshape(-1)).reshape(dense.shape))[:k] >= s[:k]
    permutation_p = (1 + as_large) / (1 + permutations)
    resampled = [_values(dense[rng.integers(0, len(dense), len(dense))])[:k] for _ in range(bootstraps)]
    cv = np.std(resampled, axis=0) / np.mean(resampled, axis=0) if resampled else np.zeros(k)
    sides = (U[:, :k].T, Vh[:k])
    shapiro = np.array([[_shapiro(stats, u) for u in side] for side in sides])
    dagostino = np.array([[float(stats.normaltest(u).pvalue) for u in side] for side in sides])
    anderson = np.array([[anderson_darling(stats, u) for u in side] for side in sides])
    lengths = np.array([side.shape[1] for side in sides])[:, None]
    peak = np.array([np.abs(side).max(axis=1) for side in sides]) / np.sqrt(2 * np.log(lengths) / lengths)
    fourth = np.array([(side**4).sum(axis=1) for side in sides]) / (3 / (lengths + 2))
    parts = [permutation_p, 1 - np.exp(-np.minimum(cv, 5.0)), *dagostino]
    parts += [part for part in shapiro if not np.isnan(part).any()]
    parts += [np.minimum(1.0, 1 / ratio) for ratio in (*peak, *fourth)]
    score = np.exp(np.mean(np.log(np.maximum(parts, 1e-6)), axis=0))
    return Randomness(
        s[:k], s[:k] > edge.sigma_plus, permutation_p, cv, shapiro, dagostino, anderson, peak, fourth, score
    )


def _shapiro(stats: Any, u: Array) -> float:
    return float(stats.shapiro(u).pvalue) if len(u) <= 5000 else math.nan


def anderson_darling(stats: Any, u: Array) -> float:
    """Anderson and Darling's statistic for normal entries of unknown mean and variance."""
    sorted_u = np.sort((u - u.mean()) / u.std(ddof=1))
    n = len(u)
    weights = 2 * np.arange(1, n + 1) - 1
    return float(-n - np.mean(weights * (stats.norm.logcdf(sorted_u) + stats.norm.logsf(sorted_u[::-1]))))


def _values(matrix: Array) -> Array:
    values = spectrum(np.ascontiguousarray(matrix), method="exact").values
    assert values is not None
    return values


def _decomposed(W: Any) -> tuple[Array, Array, Array, EdgeFit]:
    matrix = as_wide(W)
    check_matrix(matrix.shape, "float64", "W")
    edge = spectrum(W, method="exact").edge
    U, s, Vh = leading_triplets(matrix, min(matrix.shape))
    return U, s, Vh, edge


def _depth(s: Array, edge: EdgeFit) -> Array:
    """``(1 - s / sigma_plus)_+``: 1 at zero, 0 at the edge and above; 0 everywhere if there is no noise."""
    if edge.sigma_plus == 0:
        return np.zeros_like(s)
    depth: Array = np.maximum(1 - s / edge.sigma_plus, 0.0)
    return depth


def _recomposed(U: Array, s: Array, Vh: Array, W: Any) -> Any:
    product = _core.dense_product(U * s, Vh, thread_count(None))
    return like(product.astype(np.float64 if "64" in str(W.dtype) else np.float32), W)
