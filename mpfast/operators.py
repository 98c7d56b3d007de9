"""Matrices that somebody else multiplies with: SciPy sparse matrices and linear operators."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import raise_if_nonfinite

Array = NDArray[np.float64]

__all__ = ["GramOperator", "is_operator"]


def is_operator(W: Any) -> bool:
    """Whether W is a SciPy sparse matrix or offers ``matmat`` and ``rmatmat``; SciPy is not imported for it."""
    return _is_sparse(W) or (hasattr(W, "matmat") and hasattr(W, "rmatmat"))


def _is_sparse(W: Any) -> bool:
    sparse = sys.modules.get("scipy.sparse")
    return sparse is not None and bool(sparse.issparse(W))


class GramOperator:
    """The Gram operator of the short side of an operator of shape (m, n), in fp64.

    Parameters
    ----------
    W
        SciPy sparse matrix or array of any format, or a `scipy.sparse.linalg.LinearOperator`; real.
    function
        For error messages.
    """

    def __init__(self, W: Any, function: str = "spectrum") -> None:
        if len(W.shape) != 2:
            raise ValueError(f"{function}(): W must be 2-D, but has shape {tuple(W.shape)}")
        self.shape: tuple[int, int] = (int(W.shape[0]), int(W.shape[1]))
        if min(self.shape) == 0:
            raise ValueError(f"{function}(): W is empty: its shape is {self.shape}")
        dtype = np.dtype(W.dtype if W.dtype is not None else np.float64)
        if dtype.kind != "f":
            kind = "complex entries" if dtype.kind == "c" else f"dtype {dtype}"
            raise TypeError(
                f"{function}(): W has {kind}; cast it to a real floating-point type, e.g. W.astype('float64')"
            )
        self.dtype = dtype.name
        self._sparse: Any = W.tocsr() if _is_sparse(W) else None
        self._transposed: Any = self._sparse.T.tocsr() if self._sparse is not None else None
        self._operator = W
        if self._sparse is not None:
            self._check_finite(function)

    def _check_finite(self, function: str) -> None:
        assert self._sparse is not None
        bad = np.flatnonzero(~np.isfinite(self._sparse.data))
        if len(bad):
            row = int(np.searchsorted(self._sparse.indptr, bad[0], side="right")) - 1
            raise_if_nonfinite(function, "W", len(bad), (row, int(self._sparse.indices[bad[0]])))

    def frobenius_squared(self) -> float | None:
        """Squared Frobenius norm; None for an operator, whose entries nobody sees."""
        if self._sparse is None:
            return None
        return float(np.sum(self._sparse.data.astype(np.float64) ** 2))

    def multiply(self, X: NDArray[Any], *, transpose: bool) -> Array:
        """Rows of X (count, n) by ``W^T``: (count, m); with ``transpose`` (count, m) by W: (count, n)."""
        columns = np.ascontiguousarray(X.T, dtype=np.float64)
        product: Any
        if self._sparse is not None:
            product = (self._transposed if transpose else self._sparse) @ columns
        else:
            product = self._operator.rmatmat(columns) if transpose else self._operator.matmat(columns)
        return np.ascontiguousarray(np.asarray(product, dtype=np.float64).T)

    def apply(self, X: Array) -> Array:
        """Gram product of the short side: rows of X (count, p) to (count, p)."""
        wide = self.shape[0] < self.shape[1]
        return self.multiply(self.multiply(X, transpose=wide), transpose=not wide)
