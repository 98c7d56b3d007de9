"""A source without some of its rows and columns."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.operators.linear_operator import OperatorSource
from mpfast.operators.protocol import LanczosRun, Source

Array = NDArray[np.float64]

__all__ = ["RestrictedSource"]


class RestrictedSource(OperatorSource):
    """The rows and columns of a source that two masks keep, (m,) and (n,) booleans; two passes over W a Gram product.

    Its Gram operator is that of the shorter of the sides that are left; ``energies`` are those of its rows and columns,
    as of `mpfast.operators.energies`, None where nobody sees them.
    """

    def __init__(
        self,
        source: Source,
        rows: NDArray[np.bool_],
        columns: NDArray[np.bool_],
        energies: tuple[Array, Array] | None,
        threads: int,
    ) -> None:
        squared_norm = None if energies is None else float(energies[0].sum())
        super().__init__(_Restricted(source, rows, columns, squared_norm), threads)
        self.source = source
        self._energies = energies
        self.scale_exponent = source.scale_exponent
        self.device = source.device

    def energies(self, run: LanczosRun | None = None) -> tuple[Array, Array] | None:
        return self._energies

    def singular_values(self) -> tuple[Array, float, bool]:
        values, norm, by_squares = self.source.singular_values()
        return values[: min(self.shape)], norm, by_squares


class _Restricted:
    """Products with the rows and columns that are kept; methods as in `Multiplier`."""

    def __init__(
        self, source: Source, rows: NDArray[np.bool_], columns: NDArray[np.bool_], squared_norm: float | None
    ) -> None:
        self.shape = int(rows.sum()), int(columns.sum())
        self.dtype = source.dtype
        self._source = source
        self._kept = rows, columns
        self._squared_norm = squared_norm

    def frobenius_squared(self) -> float | None:
        """Squared Frobenius norm of the scaled matrix; None where nobody sees the entries."""
        return self._squared_norm

    def singular_values(self) -> None:
        """Return None: the source knows."""

    def apply(self, X: Array) -> Array:
        """Gram product of the short side: rows of X (count, p) to (count, p)."""
        wide = self.shape[0] < self.shape[1]
        return self.multiply(self.multiply(X, transpose=wide), transpose=not wide)

    def multiply(self, X: NDArray[Any], *, transpose: bool) -> Array:
        """Rows of X (count, n) by ``W^T``: (count, m); with ``transpose`` (count, m) by W: (count, n)."""
        inner, outer = self._kept[:: 1 if transpose else -1]
        whole = np.zeros((len(X), len(inner)))
        whole[:, inner] = X
        return np.asarray(self._source.multiply(whole, transpose=transpose), dtype=np.float64)[:, outer]
