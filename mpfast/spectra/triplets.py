"""From the span of some vectors to singular triplets of W: what they are, what they miss, what rounding has cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.operators import Source
from mpfast.spectra.ritz_errors import angles

Array = NDArray[np.float64]

__all__ = ["ROUNDING", "Basis", "Triplets", "Wanted", "level_of_rounding", "triplets", "unmet_tolerance"]

# s_1 / s_k up to which the triplets may come from the squares of the singular values: a loss of four digits of sixteen.
ROTATION_RANGE = 100.0
ROUNDING = 2.0**-52
# What rounding to single precision turns a vector by, at most.
ROUNDING_OF_SINGLE = 2.0**-24
# What computing a residual may add to it, in roundings of s_1.
PRODUCT_ROUNDINGS = 4.0


@dataclass(frozen=True)
class Wanted:
    """So many triplets, or all with singular values above ``floor``, to a relative ``tol``; about ``expected``.

    ``vectors_tol`` bounds the angles of the vectors, where these are wanted as well.
    """

    k: int | None
    floor: float
    tol: float
    expected: int
    vectors_tol: float | None = None

    def count(self, squares: Array, scale_exponent: int) -> int:
        """How many of these squares of singular values of the scaled W are wanted."""
        if self.k is not None:
            return self.k
        floor = self.floor * 2.0**-scale_exponent
        return int(np.count_nonzero(squares > floor**2))


@dataclass(frozen=True, eq=False)
class Basis:
    """Leading eigenvectors of the scaled Gram operator, (count, p), and what their Krylov run left of them.

    ``residuals`` are on the scale s^2, (count,); ``beyond`` is the next eigenvalue, 0 where there is none, and at most
    ``at_most``; ``unmet`` says where the run fell short of `tol`.
    """

    vectors: NDArray[Any]
    residuals: Array
    beyond: float = 0.0
    at_most: float = 0.0
    unmet: str = ""


@dataclass(frozen=True, eq=False)
class Triplets:
    """Singular triplets of the scaled W, vectors as rows: of its long side and of its short side."""

    source: Source
    s: Array
    long_side: NDArray[Any]
    short_side: NDArray[Any]
    residuals: Array
    angles: Array
    unmet: str = ""
    unmet_vectors: str = ""

    @property
    def is_as_wanted(self) -> bool:
        """Whether values and vectors are to their tolerances."""
        return not self.unmet and not self.unmet_vectors


def _rotated(basis: NDArray[Any], image: NDArray[Any], threads: int) -> tuple[Array, NDArray[Any], NDArray[Any]]:
    """Singular values, and vectors of the long and of the short side, in the span of a basis (k, p); image (k, q)."""
    s, left, right = _core.singular_rotation(basis, np.ascontiguousarray(image, dtype=basis.dtype), threads)
    if 0 < s[0] <= ROTATION_RANGE * s[-1]:
        return s, left, right
    return _core.singular_decomposition(basis.astype(np.float64), image.astype(np.float64, order="C"), threads)


def triplets(source: Source, basis: Basis, wanted: Wanted, threads: int) -> Triplets:
    """Rayleigh-Ritz on W itself: singular triplets of W restricted to the span of the basis, the wanted ones of them.

    ``W v = s u`` (``W^T u = s v``, for a wide W) holds but for rounding; the other equation misses by what the Krylov
    run has left, ``W^T W v - s^2 v``, divided by s.
    """
    m, n = source.shape
    tall = m >= n
    if len(basis.vectors) == 0:
        return _nothing(source, basis.unmet)
    image = source.multiply(basis.vectors, transpose=not tall)
    s, long_side, short_side = _rotated(basis.vectors, image, threads)
    count = min(wanted.count(s**2, source.scale_exponent), len(s))
    if count == 0:  # what the squares put just above the floor lies just below it
        return _nothing(source, basis.unmet)
    left = np.divide(basis.residuals, s, out=np.zeros(len(s)), where=s > 0)[:count]
    beyond = float(s[count]) if count < len(s) else math.sqrt(basis.beyond)
    long_side, short_side = long_side[:count], short_side[:count]
    s, residuals = _measured(source, long_side, short_side)
    order = np.argsort(-s, kind="stable")
    if not (order[1:] > order[:-1]).all():
        s, residuals, left = s[order], residuals[order], left[order]
        long_side, short_side = long_side[order], short_side[order]
    unmet = basis.unmet
    # What a run has left it has judged by itself; rounding has added the rest.
    added = np.sqrt(np.maximum(residuals**2 - left**2, 0.0))
    worst = _worst_of_rounding(s, added, beyond, level_of_rounding(s, source.shape))
    if not unmet and worst > wanted.tol:
        unmet = unmet_tolerance("for rounding", count, worst)
    around = angles(s, residuals, max(beyond, math.sqrt(basis.at_most)), wanted.tol)
    if source.dtype != "float64" and long_side.dtype == np.float64:
        around = np.minimum(around + ROUNDING_OF_SINGLE, math.pi / 2)
        long_side, short_side = long_side.astype(np.float32), short_side.astype(np.float32)
        residuals = _residuals(source, s, long_side, short_side)
    return Triplets(source, s, long_side, short_side, residuals, around, unmet, _unmet_vectors(around, wanted))


def _nothing(source: Source, unmet: str) -> Triplets:
    none = np.empty(0)
    return Triplets(source, none, np.empty((0, max(source.shape))), np.empty((0, min(source.shape))), none, none, unmet)


def _unmet_vectors(around: Array, wanted: Wanted) -> str:
    """Say how far off the worst vectors are, where that is more than wanted."""
    worst = float(around.max(initial=0.0))
    if wanted.vectors_tol is None or worst <= wanted.vectors_tol:
        return ""
    off = int(np.count_nonzero(around > wanted.vectors_tol))
    return (
        f"vectors_tol={wanted.vectors_tol:g} was not met: {off} of the {len(around)} vectors, or the spaces that they "
        f"span with those of equal values, may be off by up to {worst:.1g}"
    )


def _measured(source: Source, long_side: NDArray[Any], short_side: NDArray[Any]) -> tuple[Array, Array]:
    """Singular values as Rayleigh quotients ``u^T W v``, and residuals, both by fp64 products with W.

    A Rayleigh quotient errs by about the square of the residual over the gap: less than what the vectors came with.
    """
    u, v, forth, back = _products(source, long_side, short_side)
    lengths = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
    s = np.divide(np.einsum("ij,ij->i", u, forth), lengths, out=np.zeros(len(u)), where=lengths > 0)
    s = np.maximum(s, 0.0)
    return s, _missing(s, u, v, forth, back)


def _residuals(source: Source, s: Array, long_side: NDArray[Any], short_side: NDArray[Any]) -> Array:
    return _missing(s, *_products(source, long_side, short_side))


def _products(source: Source, long_side: NDArray[Any], short_side: NDArray[Any]) -> tuple[Array, Array, Array, Array]:
    """Both sides in fp64, and the products with W: of the short side, on the long one, and of the long side."""
    tall = source.shape[0] >= source.shape[1]
    u, v = long_side.astype(np.float64), short_side.astype(np.float64)
    return u, v, source.multiply(v, transpose=not tall), source.multiply(u, transpose=tall)


def _missing(s: Array, u: Array, v: Array, forth: Array, back: Array) -> Array:
    """The larger of both residuals, and what the products themselves may be off by."""
    both = (np.linalg.norm(forth - s[:, None] * u, axis=1), np.linalg.norm(back - s[:, None] * v, axis=1))
    larger: Array = np.maximum(*both) + PRODUCT_ROUNDINGS * ROUNDING * s.max()
    return larger


def level_of_rounding(s: Array, shape: tuple[int, int]) -> float:
    """Up to what a value may be the rounding of a backward stable decomposition; ``s`` descending."""
    return max(shape) * ROUNDING * float(s[0]) if len(s) else 0.0


def _worst_of_rounding(s: Array, added: Array, beyond: float, level: float) -> float:
    """Largest relative error of the values (descending) above ``level`` whose residuals rounding has made so large.

    As much as the residual, or its square over the distance to the nearest other value.
    """
    around = np.concatenate([[np.inf], s, [beyond]])
    gap = np.minimum(around[:-2] - s, s - around[2:])
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(gap > added, added**2 / gap, added)
    told = s > level
    return float((error[told] / s[told]).max(initial=0.0))


def unmet_tolerance(where: str, count: int, worst: float) -> str:
    """Say where `tol` was not met and how far off the worst of the values is; the rest of a warning's sentence."""
    return f"{where}; the worst of the {count} values has an estimated relative error of {worst:.1g}"
