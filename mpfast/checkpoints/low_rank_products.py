"""Matrices known by small factors, whose singular values and products need no matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.support import InvalidValueError

__all__ = ["KroneckerProduct", "LowRankProduct", "hadamard_product", "tucker_factors"]

Array = NDArray[np.float64]

# Of a product with factors: they are small, and the layers of a model are looked at side by side.
THREADS = 1


class LowRankProduct:
    """The matrix ``scale B A``, known by its products: A (r, n), B (m, r)."""

    def __init__(self, A: NDArray[Any], B: NDArray[Any], scale: float = 1.0) -> None:
        self._A = A.astype(np.float64)
        self._B = B.astype(np.float64) * scale
        self.shape = (B.shape[0], A.shape[1])
        self.dtype = np.dtype(np.float64)

    def singular_values(self) -> Array:
        """All min(m, n) singular values, descending, from those of an r x r matrix; the others are exactly zero."""
        values = np.zeros(min(self.shape))
        if self._A.size and self._B.size:
            found = _decomposed(self._inner()[1])[1]
            values[: len(found)] = found
        return values

    def decomposed(self) -> tuple[Array, Array, Array]:
        """U (m, k), s (k,) and Vh (k, n), whose product is the matrix, with k = min(r, m, n); O((m + n) r^2)."""
        left, inner, right = self._inner()
        U, s, Vh = _decomposed(inner)
        return _product(left.T, U), s, _product(Vh, right)

    def frobenius_norm(self) -> float:
        """Square root of the sum of the squares of all entries."""
        return float(np.linalg.norm(self._inner()[1]))

    def minus(self, other: LowRankProduct) -> LowRankProduct:
        """Return the difference to another product of the same shape, of the sum of both ranks."""
        return LowRankProduct(np.concatenate([self._A, other._A]), np.concatenate([self._B, -other._B], axis=1))

    def matmat(self, X: NDArray[Any]) -> Array:
        """Return B A X."""
        return _product(self._B, _product(self._A, X))

    def rmatmat(self, X: NDArray[Any]) -> Array:
        """Return (B A)^T X."""
        return _product(self._A.T, _product(self._B.T, X))

    def _inner(self) -> tuple[Array, Array, Array]:
        """Q_B^T, R_B R_A^T and Q_A^T of ``B = Q_B R_B`` and ``A^T = Q_A R_A``: B A is the product of the three.

        The one in the middle is at most r x r and has the singular values of B A that are not zero.
        """
        for factor in (self._A, self._B):
            _check_finite(factor)
        left, upper = _core.orthonormal_rows(np.ascontiguousarray(self._B.T), THREADS)
        right, lower = _core.orthonormal_rows(np.ascontiguousarray(self._A), THREADS)
        inner = _product(upper, lower.T)
        _check_finite(inner)  # of finite factors whose product is none
        return left, inner, right


class KroneckerProduct:
    """The matrix ``scale (F x G)``, block (i, j) of which is ``F[i, j] G``: F (a, b) and G (c, d) make (a c, b d)."""

    def __init__(self, F: NDArray[Any], G: NDArray[Any], scale: float = 1.0) -> None:
        self._F = F.astype(np.float64) * scale
        self._G = G.astype(np.float64)
        self.shape = (F.shape[0] * G.shape[0], F.shape[1] * G.shape[1])
        self.dtype = np.dtype(np.float64)

    def singular_values(self) -> Array:
        """All min(a c, b d) singular values, descending: the products of those of F and G, and zeros."""
        values = np.zeros(min(self.shape))
        for factor in (self._F, self._G):
            _check_finite(factor)
        found = np.outer(_decomposed(self._F)[1], _decomposed(self._G)[1]).reshape(-1)
        _check_finite(found)
        values[: len(found)] = np.sort(found)[::-1]
        return values

    def matmat(self, X: NDArray[Any]) -> Array:
        """Return (F x G) X."""
        return _kronecker_applied(self._F, self._G, X)

    def rmatmat(self, X: NDArray[Any]) -> Array:
        """Return (F x G)^T X."""
        return _kronecker_applied(self._F.T, self._G.T, X)


def hadamard_product(
    first: tuple[NDArray[Any], NDArray[Any]], second: tuple[NDArray[Any], NDArray[Any]], scale: float = 1.0
) -> LowRankProduct | Array:
    """Return ``scale (B1 A1) * (B2 A2)``, entry by entry, of pairs (B, A): of rank r1 r2 at most.

    Its factors are all products of two columns of B1 and B2, and of two rows of A1 and A2. Where they would have more
    entries than the matrix, the matrix is formed.
    """
    (B1, A1), (B2, A2) = ((B.astype(np.float64), A.astype(np.float64)) for B, A in (first, second))
    rows, columns, rank = len(B1), A1.shape[1], B1.shape[1] * B2.shape[1]
    if rank * (rows + columns) > rows * columns:
        return scale * _product(B1, A1) * _product(B2, A2)
    B = (B1[:, :, None] * B2[:, None, :]).reshape(rows, rank)
    A = (A1[:, None, :] * A2[None, :, :]).reshape(rank, columns)
    return LowRankProduct(A, B, scale)


def tucker_factors(core: NDArray[Any], left: NDArray[Any], right: NDArray[Any]) -> tuple[Array, Array]:
    """Return B (m, r) and A (r, n k) of ``W[p, q, ...] = sum over i, j of core[i, j, ...] B[p, i] R[j, q]``.

    W is the weight of a convolution, and B A its matrix, (out, in kh kw).

    Parameters
    ----------
    core : (r, s, ...) array
        Between the factors; its last axes are those of the kernel.
    left : (m, r) array
        What multiplies last, B.
    right : (s, n) array
        What multiplies first, R, which goes into A: ``A[i, (q, ...)]``.
    """
    A = np.tensordot(np.moveaxis(core.astype(np.float64), 1, -1), right.astype(np.float64), 1)
    return left.astype(np.float64), np.moveaxis(A, -1, 1).reshape(len(core), -1)


def _product(left: NDArray[Any], right: NDArray[Any]) -> Array:
    return _core.dense_product(left, right, THREADS)


def _decomposed(matrix: Array) -> tuple[Array, Array, Array]:
    """U, s and Vh of a small matrix."""
    turned = matrix.shape[0] > matrix.shape[1]
    image = np.ascontiguousarray(matrix.T if turned else matrix)
    s, right, left = _core.singular_decomposition(np.eye(len(image)), image, THREADS)
    return (right.T, s, left) if turned else (left.T, s, right)


def _kronecker_applied(F: Array, G: Array, X: NDArray[Any]) -> Array:
    """All d columns of X at once: row (i, c) of the result sums ``F[i, j] G[c, d]`` times row (j, d) of X."""
    blocks = X.astype(np.float64).reshape(F.shape[1], G.shape[1], -1)
    applied: Array = np.einsum("ij,cd,jdk->ick", F, G, blocks, optimize=True)
    return applied.reshape(len(F) * len(G), -1)


def _check_finite(factor: Array) -> None:
    if not np.isfinite(factor).all():
        raise InvalidValueError("W", "is a product of factors with non-finite entries (NaN or inf)", "clean them first")
