"""Matrices that somebody else multiplies with: SciPy sparse matrices and linear operators."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import FLOATS, dtype_error, raise_if_nonfinite
from mpfast.operators.protocol import LanczosRun, Multiplier, gram_memory
from mpfast.support import InvalidTypeError, InvalidValueError

Array = NDArray[np.float64]

__all__ = ["GramOperator", "OperatorSource", "is_operator"]


def is_operator(W: Any) -> bool:
    """Whether W is a SciPy sparse matrix or offers ``matmat`` and ``rmatmat``; SciPy is not imported for it."""
    return _is_sparse(W) or (hasattr(W, "matmat") and hasattr(W, "rmatmat"))


def _is_sparse(W: Any) -> bool:
    sparse = sys.modules.get("scipy.sparse")
    return sparse is not None and bool(sparse.issparse(W))


def _canonical(W: Any) -> Any:
    """CSR form in which every entry is stored once; W itself, not a copy, where it is one already."""
    csr = W.tocsr()
    if csr.has_canonical_format or not len(csr.data):
        return csr
    if csr is W:
        csr = csr.copy()
    csr.sum_duplicates()
    return csr


class GramOperator:
    """The Gram operator of the short side of an operator of shape (m, n), in fp64.

    Parameters
    ----------
    W
        SciPy sparse matrix or array of any format, or a `scipy.sparse.linalg.LinearOperator`; real.
    """

    def __init__(self, W: Any) -> None:
        if len(W.shape) != 2:
            raise InvalidValueError("W", f"must be 2-D, but has shape {tuple(W.shape)}")
        self.shape: tuple[int, int] = (int(W.shape[0]), int(W.shape[1]))
        if min(self.shape) == 0:
            raise InvalidValueError("W", f"is empty: its shape is {self.shape}")
        given = getattr(W, "dtype", None)
        dtype = np.dtype(np.float64 if given is None else given)
        if dtype.name not in FLOATS:
            cast = "W.astype('float64')" if _is_sparse(W) else "W.dtype = numpy.dtype('float64')"
            raise dtype_error("W", dtype.name, cast)
        self.dtype = dtype.name
        self._operator = W
        self._sparse: Any = _canonical(W) if _is_sparse(W) else None
        if self._sparse is not None:
            self._transposed: Any = self._sparse.T
            self._check_finite()

    def _check_finite(self) -> None:
        bad = np.flatnonzero(~np.isfinite(self._sparse.data))
        if len(bad):
            rows = np.searchsorted(self._sparse.indptr, bad, side="right") - 1
            columns = self._sparse.indices[bad]
            first = np.lexsort((columns, rows))[0]
            raise_if_nonfinite("W", len(bad), (int(rows[first]), int(columns[first])))

    def frobenius_squared(self) -> float | None:
        """Squared Frobenius norm; None for an operator, whose entries nobody sees."""
        if self._sparse is None:
            return None
        entries = self._sparse.data.astype(np.float64)
        largest = float(np.abs(entries).max(initial=0.0))
        if largest > 0 and not 1e-140 < largest < 1e140:
            raise InvalidValueError("", f"the largest entry of W is {largest:.1g}: its square is no float64", "scale W")
        return float(np.sum(entries**2))

    def multiply(self, X: NDArray[Any], *, transpose: bool) -> Array:
        """Rows of X (count, n) by ``W^T``: (count, m); with ``transpose`` (count, m) by W: (count, n)."""
        columns = np.ascontiguousarray(X.T, dtype=np.float64)
        product: Any
        if self._sparse is not None:
            product = (self._transposed if transpose else self._sparse) @ columns
        else:
            product = self._adjoint_product(columns) if transpose else self._operator.matmat(columns)
        rows = np.ascontiguousarray(np.asarray(product, dtype=np.float64).T)
        if not np.isfinite(rows).all():
            raise InvalidValueError(
                "products with W", "are not finite (NaN or inf)", "clean the entries of the operator"
            )
        return rows

    def _adjoint_product(self, columns: Array) -> Any:
        try:
            return self._operator.rmatmat(columns)
        except (TypeError, NotImplementedError) as error:
            raise InvalidTypeError(
                "", f"W.rmatmat failed ({error})", "give the operator its adjoint product, rmatvec or rmatmat"
            ) from error

    def singular_values(self) -> Array | None:
        """All singular values, descending, where the operator itself knows them."""
        known = getattr(self._operator, "singular_values", None)
        return np.asarray(known(), dtype=np.float64) if callable(known) else None

    def apply(self, X: Array) -> Array:
        """Gram product of the short side: rows of X (count, p) to (count, p)."""
        wide = self.shape[0] < self.shape[1]
        return self.multiply(self.multiply(X, transpose=wide), transpose=not wide)


class OperatorSource:
    """A matrix that its owner multiplies with, in fp64; methods as in `mpfast.operators.protocol.Source`."""

    device = "cpu"
    scale_exponent = 0

    def __init__(self, operator: Multiplier, threads: int) -> None:
        self.operator = operator
        self.threads = threads
        self.shape = operator.shape
        self.dtype = operator.dtype
        self._squared_norm = operator.frobenius_squared()
        self.exact_norm = self._squared_norm is not None

    def start(self, width: int, seed: int, stream: int, *, precise: bool) -> LanczosRun:
        return _core.lanczos_run_operator(self.operator.apply, min(self.shape), width, seed, stream, self.threads)

    def squared_norm(self, measured: float) -> float | None:
        return self._squared_norm

    def gram(self) -> Array:
        p = min(self.shape)
        with gram_memory(self.shape):
            gram = np.empty((p, p))
        for first in range(0, p, 32):
            unit = np.eye(min(32, p - first), p, k=first)
            gram[first : first + len(unit)] = self.operator.apply(unit)
        return 0.5 * (gram + gram.T)

    def singular_values(self) -> tuple[Array, float]:
        known = self.operator.singular_values()
        if known is not None:
            return known, float(np.linalg.norm(known))
        gram = self.gram()
        eigenvalues = _core.symmetric_eigenvalues(gram, self.threads)
        values = np.sqrt(np.maximum(eigenvalues[::-1], 0.0))
        return values, float(np.sqrt(np.trace(gram)))

    def multiply(self, X: NDArray[Any], *, transpose: bool) -> NDArray[Any]:
        return self.operator.multiply(X, transpose=transpose)
