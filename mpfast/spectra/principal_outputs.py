"""The principal directions of a layer's outputs, and the low-rank factors that keep them: closed forms.

For inputs of second moment H the outputs have the second moment ``W H W^T``. With Q its k leading eigenvectors,
``Q Q^T W`` is of all matrices of rank k the one whose outputs differ least: ``Q^T W H^(1/2)`` is what the truncated
singular value decomposition of ``W H^(1/2)`` keeps, and no inverse of H is needed for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import raise_if_nonfinite, wide

__all__ = ["PrincipalOutputs"]

Array = NDArray[np.float64]


class PrincipalOutputs:
    """The eigenvectors of ``W H W^T``.

    Parameters
    ----------
    array, dtype
        Weights W, (out, in), as `as_numpy` gives them, checked to be a matrix.
    name
        Of the argument that they are.
    moment
        H, (in, in), float64 and symmetric; overwritten.
    threads
        For the core. Results do not depend on it.
    roots
        What the rows of W are multiplied with before: roots of how much each output matters, (out,). Default 1.

    Attributes
    ----------
    shape
        Of W.
    energies
        What each direction adds to the mean square of the outputs, descending, (min(out, in),); inf beyond range.

    Raises
    ------
    InvalidValueError
        W has non-finite entries.
    """

    def __init__(
        self, array: NDArray[Any], dtype: str, name: str, moment: Array, threads: int, roots: Array | None = None
    ) -> None:
        self.shape: tuple[int, int] = (array.shape[0], array.shape[1])
        self._threads = threads
        weights = wide(array, dtype)
        largest = float(np.abs(weights).max())
        if not np.isfinite(largest):
            bad = ~np.isfinite(weights)
            row, column = np.unravel_index(int(bad.argmax()), bad.shape)
            raise_if_nonfinite(name, int(bad.sum()), (int(row), int(column)))
        self._roots = np.ones(len(weights)) if roots is None else roots
        # No square overflows in these units.
        self._unit = largest or 1.0
        self._scale = float(moment.diagonal().mean()) or 1.0
        self._weights = np.ascontiguousarray(self._roots[:, None] * (weights / self._unit))
        moment /= self._scale
        energies, self._directions = self._leading(moment)
        with np.errstate(over="ignore"):
            self.energies = energies * self._unit * self._unit * self._scale

    def _leading(self, moment: Array) -> tuple[Array, Array]:
        """Eigenvalues of W H W^T, descending, and its eigenvectors as columns, from the smaller side."""
        rows, cols = self.shape
        if rows <= cols:
            image = self._product(self._weights, moment)
            values, vectors = _core.symmetric_eigenvectors(self._product(image, self._weights.T), self._threads)
            return np.maximum(values[::-1], 0.0), np.ascontiguousarray(vectors[::-1].T)
        # With W = Q R, they are those of R H R^T turned by Q.
        basis, small = _core.orthonormal_rows(np.ascontiguousarray(self._weights.T), self._threads)
        inner = self._product(self._product(small, moment), small.T)
        values, vectors = _core.symmetric_eigenvectors(inner, self._threads)
        return np.maximum(values[::-1], 0.0), self._product(basis.T, vectors[::-1].T)

    def _product(self, a: Array, b: Array) -> Array:
        return _core.dense_product(np.ascontiguousarray(a), np.ascontiguousarray(b), self._threads)

    def factors(self, rank: int) -> tuple[Array, Array]:
        """A and B of the best product of this rank, column k of A and row k of B with the same norm."""
        left = np.ascontiguousarray(self._directions[:, :rank])
        right = self._product(left.T, self._weights)
        norms = np.sqrt(np.linalg.norm(right, axis=1))
        balance = np.where(norms > 0, norms, 1.0)
        root = np.sqrt(self._unit)
        return left * balance * root / self._roots[:, None], right / balance[:, None] * root

    def captured(self, moment: Array) -> tuple[Array, float]:
        """Return what the leading directions have of the mean square of the outputs by another moment, and all of it.

        Rows count as they do for the directions; both in one unit. ``captured[k - 1]`` is of k directions.
        """
        image = self._product(self._weights, moment / self._scale)
        total = float((image * self._weights).sum())
        across = np.ascontiguousarray(self._directions.T)
        shares = (self._product(across, image) * self._product(across, self._weights)).sum(axis=1)
        return np.cumsum(shares), total
