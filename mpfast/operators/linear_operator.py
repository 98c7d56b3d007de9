"""Matrices that somebody else multiplies with: SciPy sparse matrices and linear operators."""

from __future__ import annotations

import copy
import sys
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import FLOATS, dtype_error, raise_if_nonfinite
from mpfast.operators.factors import Energies, Factors, times
from mpfast.operators.protocol import LanczosRun, Multiplier, gram_memory
from mpfast.support import InvalidTypeError, InvalidValueError

Array = NDArray[np.float64]

__all__ = ["GramOperator", "OperatorSource", "ScaledOperator", "is_operator"]

# What two products that are each other's adjoint may differ by, in roundings of their norms; and in what splitting a
# vector in two changes, where an operator rounds more than its type says.
ADJOINT_ROUNDINGS = 512.0
ADJOINT_NOISE = 64.0
LARGEST_NOISE = 1e-4  # relative


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
        self._has_adjoint = False  # not yet known to
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

    def frobenius_squared(self, factors: Factors | None = None) -> float | None:
        """Squared Frobenius norm, with factors; None for an operator, whose entries nobody sees."""
        if self._sparse is None:
            return None
        entries = self._entries(factors)
        largest = float(np.abs(entries).max(initial=0.0))
        if largest > 0 and not 1e-140 < largest < 1e140:
            raise InvalidValueError("", f"the largest entry of W is {largest:.1g}: its square is no float64", "scale W")
        return float(np.sum(entries**2))

    def _entries(self, factors: Factors | None) -> Array:
        """Those that are stored of a sparse matrix, times those of their row and column."""
        entries: Array = self._sparse.data.astype(np.float64)
        if factors is None:
            return entries
        entries *= factors.rows[self._rows()] * factors.columns[self._sparse.indices]
        return entries

    def _rows(self) -> NDArray[np.intp]:
        """The row of every entry that is stored."""
        return np.repeat(np.arange(self.shape[0]), np.diff(self._sparse.indptr))

    def multiply(self, X: NDArray[Any], *, transpose: bool) -> Array:
        """Rows of X (count, n) by ``W^T``: (count, m); with ``transpose`` (count, m) by W: (count, n)."""
        if not self._has_adjoint and self._sparse is None:
            self._check_adjoint()
            self._has_adjoint = True
        columns = np.ascontiguousarray(X.T, dtype=np.float64)
        rows = np.ascontiguousarray(self._product(columns, transpose=transpose).T)
        if not np.isfinite(rows).all():
            raise InvalidValueError(
                "products with W", "are not finite (NaN or inf)", "clean the entries of the operator"
            )
        return rows

    def _product(self, columns: Array, *, transpose: bool) -> Array:
        if self._sparse is not None:
            product = (self._transposed if transpose else self._sparse) @ columns
        else:
            product = self._adjoint_product(columns) if transpose else self._operator.matmat(columns)
        return np.asarray(product, dtype=np.float64)

    def _check_adjoint(self) -> None:
        """Raise ValueError unless ``<y, W x> = <W^T y, x>`` for random x and y, but for rounding.

        Where it fails by rounding of a size that the type does not explain (fp32 inside, or differences of large
        products), the operator shows that rounding by ``W x + W x'`` not being ``W (x + x')`` either.
        """
        random = np.random.default_rng(0)
        x, y = (random.standard_normal((side, 2)) for side in self.shape[::-1])
        forth, back = self._product(x[:, :1], transpose=False), self._product(y[:, :1], transpose=True)
        shaped = forth.shape == (self.shape[0], 1) and back.shape == (self.shape[1], 1)
        if not (shaped and np.isfinite(forth).all() and np.isfinite(back).all()):
            return  # whoever asked for a product hears of that
        left, right = float(np.vdot(y[:, :1], forth)), float(np.vdot(back, x[:, :1]))
        eps = 2.0**-52 if self.dtype == "float64" else 2.0**-23
        x_norm, y_norm = (float(np.linalg.norm(vector[:, :1])) for vector in (x, y))
        size = y_norm * float(np.linalg.norm(forth)) + x_norm * float(np.linalg.norm(back))
        if abs(left - right) <= ADJOINT_ROUNDINGS * eps * size:
            return
        noise = 0.0
        for vectors, other_norm, transpose in ((x, y_norm, False), (y, x_norm, True)):
            whole = self._product(vectors.sum(axis=1, keepdims=True), transpose=transpose)
            parts = [self._product(vectors[:, k : k + 1], transpose=transpose) for k in range(2)]
            noise += other_norm * float(np.linalg.norm(whole - parts[0] - parts[1]))
        if abs(left - right) > min(ADJOINT_NOISE * noise, LARGEST_NOISE * size):
            raise InvalidValueError(
                "W",
                f"has an rmatvec that is not the adjoint of its matvec: <y, W x> = {left:.6g} for random x and y, but "
                f"<W^T y, x> = {right:.6g}",
                "give it the product with the transpose as rmatvec or rmatmat",
            )

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

    def energies(self, factors: Factors | None = None) -> Energies | None:
        """Sums of the squares of every row and column, with factors; None for an operator."""
        if self._sparse is None:
            return None
        with np.errstate(over="ignore"):
            squares = self._entries(factors) ** 2
        rows = self._rows()
        sums = (np.bincount(k, squares, size) for k, size in zip((rows, self._sparse.indices), self.shape, strict=True))
        row_sums, column_sums = (each.astype(np.float64) for each in sums)
        return row_sums, column_sums

    def scaled(self, factors: Factors) -> ScaledOperator:
        """The same matrix with its rows and columns multiplied by factors, but for their power of two."""
        return ScaledOperator(self, factors)


class Scalable(Protocol):
    """What a `ScaledOperator` multiplies with; as in `mpfast.operators.protocol.Multiplier`, `factors` of one's own."""

    shape: tuple[int, int]
    dtype: str

    def frobenius_squared(self, factors: Factors | None = None) -> float | None: ...
    def energies(self, factors: Factors | None = None) -> Energies | None: ...
    def multiply(self, X: NDArray[Any], *, transpose: bool) -> Array: ...
    def scaled(self, factors: Factors) -> ScaledOperator: ...


class ScaledOperator:
    """The Gram operator of a scaled matrix, by products with the one that is read; methods as in `Multiplier`."""

    def __init__(self, operator: Scalable, factors: Factors) -> None:
        self.shape = operator.shape
        self.dtype = operator.dtype
        self._operator = operator
        self._factors = factors

    def frobenius_squared(self) -> float | None:
        """Squared Frobenius norm; None for an operator, whose entries nobody sees."""
        return self._operator.frobenius_squared(self._factors)

    def singular_values(self) -> None:
        """Return None: those that an operator knows are not those of the scaled matrix."""

    def apply(self, X: Array) -> Array:
        """Gram product of the short side: rows of X (count, p) to (count, p)."""
        wide = self.shape[0] < self.shape[1]
        return self.multiply(self.multiply(X, transpose=wide), transpose=not wide)

    def multiply(self, X: NDArray[Any], *, transpose: bool) -> Array:
        """Rows of X (count, n) by ``W^T``: (count, m); with ``transpose`` (count, m) by W: (count, n)."""
        inner, outer = self._factors.across(transpose)
        return times(self._operator.multiply(times(X.astype(np.float64), inner), transpose=transpose), outer)

    def energies(self) -> Energies | None:
        """Sums of the squares of every row and column; None where nobody sees the entries."""
        return self._operator.energies(self._factors)

    def scaled(self, factors: Factors) -> ScaledOperator:
        """The matrix that is read, with these factors in the place of those that it has."""
        return self._operator.scaled(factors)


class OperatorSource:
    """A matrix that its owner multiplies with, in fp64; methods as in `mpfast.operators.protocol.Source`."""

    device = "cpu"
    scale_exponent = 0
    factors: Factors | None = None

    def __init__(self, operator: Multiplier, threads: int) -> None:
        self.operator = operator
        self.threads = threads
        self.shape = operator.shape
        self.dtype = operator.dtype
        self._squared_norm = operator.frobenius_squared()
        self.exact_norm = self._squared_norm is not None

    def scaled(self, factors: Factors) -> OperatorSource:
        other = copy.copy(self)
        other.operator = self.operator.scaled(factors)
        other._squared_norm = other.operator.frobenius_squared()
        other.factors = factors
        other.scale_exponent += factors.exponent - (0 if self.factors is None else self.factors.exponent)
        return other

    def energies(self, run: LanczosRun | None) -> Energies | None:
        return self.operator.energies()

    def start(
        self, width: int, seed: int, stream: int, *, precise: bool, energies: bool = False, parts: int = 1
    ) -> LanczosRun:
        return _core.lanczos_run_operator(
            self.operator.apply, min(self.shape), width, seed, stream, self.threads, parts
        )

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

    def singular_values(self, *, keep_gram: bool = False) -> tuple[Array, float, bool]:
        known = self.operator.singular_values()
        if known is not None:
            return known, float(np.linalg.norm(known)), False
        gram = self.gram()
        eigenvalues = _core.symmetric_eigenvalues(gram, self.threads)
        unit = 2.0**self.scale_exponent
        values = np.sqrt(np.maximum(eigenvalues[::-1], 0.0)) * unit
        return values, float(np.sqrt(np.trace(gram))) * unit, True

    def multiply(self, X: NDArray[Any], *, transpose: bool) -> NDArray[Any]:
        return self.operator.multiply(X, transpose=transpose)
