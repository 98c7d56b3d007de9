"""Energies of the rows and columns of a source, and products of the source with its rows and columns scaled."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import widened
from mpfast.operators.host import MatrixSource
from mpfast.operators.linear_operator import OperatorSource
from mpfast.operators.protocol import LanczosRun, Source

Array = NDArray[np.float64]

__all__ = ["energies", "scaled"]

# Entries that are widened at a time.
PIECE = 1 << 20


def energies(source: Source, run: LanczosRun | None = None) -> tuple[Array, Array] | None:
    """Sums of squares of every row, (m,), and column, (n,), in units of ``4**source.scale_exponent``, in fp64.

    None where nobody sees the entries. ``run``: a run on this source, whose first pass may have seen them.
    """
    own = getattr(source, "energies", None)
    if own is not None:
        found: tuple[Array, Array] | None = own(run)
        return found
    return _energies(source, *map(np.ones, source.shape)) if isinstance(source, MatrixSource) else None


def _energies(source: MatrixSource, row_scale: Array, column_scale: Array) -> tuple[Array, Array]:
    owner: NDArray[Any] = np.asarray(source.matrix.owner)
    m, n = source.shape
    rows, columns = np.empty(m), np.zeros(n)
    step = max(1, PIECE // n)
    unit = 2.0**-source.scale_exponent
    with np.errstate(over="ignore", invalid="ignore"):
        for first in range(0, m, step):
            piece = owner[first : first + step]
            wide = widened(piece) if source.dtype == "bfloat16" else piece
            squares = (wide.astype(np.float64) * unit * row_scale[first : first + step, None] * column_scale) ** 2
            rows[first : first + step] = squares.sum(axis=1)
            columns += squares.sum(axis=0)
    return rows, columns


def scaled(source: Source, row_scale: Array, column_scale: Array) -> Source:
    """Return ``diag(row_scale) W diag(column_scale)`` as a source; 0 leaves a row or column out, as one of zeros."""
    return _ScaledSource(source, row_scale, column_scale)


class _ScaledSource(OperatorSource):
    """A source with factors on the vectors that it is multiplied with."""

    def __init__(self, source: Source, row_scale: Array, column_scale: Array) -> None:
        super().__init__(_Scaled(source, row_scale, column_scale), getattr(source, "threads", 0))
        self.source = source
        self.factors = row_scale, column_scale
        self.scale_exponent = source.scale_exponent
        self.device = source.device
        found = self.energies()
        self._squared_norm = None if found is None else float(found[0].sum())
        self.exact_norm = found is not None

    def energies(self, run: LanczosRun | None = None) -> tuple[Array, Array] | None:
        return _energies(self.source, *self.factors) if isinstance(self.source, MatrixSource) else None

    def singular_values(self) -> tuple[Array, float, bool]:
        values, norm, by_squares = super().singular_values()
        unit = 2.0**self.scale_exponent
        return values * unit, norm * unit, by_squares


class _Scaled:
    """Products of ``diag(row_scale) W diag(column_scale)``; methods as in `Multiplier`."""

    def __init__(self, source: Source, row_scale: Array, column_scale: Array) -> None:
        self.shape = source.shape
        self.dtype = source.dtype
        self._source = source
        self._factors = (np.asarray(row_scale, dtype=np.float64), np.asarray(column_scale, dtype=np.float64))

    def frobenius_squared(self) -> None:
        """Return None: the source knows."""

    def singular_values(self) -> None:
        """Return None: they are not known in advance."""

    def apply(self, X: Array) -> Array:
        """Gram product of the short side: rows of X (count, p) to (count, p)."""
        wide = self.shape[0] < self.shape[1]
        return self.multiply(self.multiply(X, transpose=wide), transpose=not wide)

    def multiply(self, X: NDArray[Any], *, transpose: bool) -> Array:
        """Rows of X (count, n) by ``W^T``: (count, m); with ``transpose`` (count, m) by W: (count, n)."""
        inner, outer = self._factors[:: 1 if transpose else -1]
        product = self._source.multiply(X.astype(np.float64) * inner, transpose=transpose)
        return np.asarray(product, dtype=np.float64) * outer
