"""A source without some of its rows and columns."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.operators.factors import Energies, Factors
from mpfast.operators.linear_operator import OperatorSource
from mpfast.operators.protocol import LanczosRun, Source

Array = NDArray[np.float64]
Kept = NDArray[np.bool_]

__all__ = ["RestrictedSource"]


class RestrictedSource(OperatorSource):
    """The rows and columns of a source that two masks keep, (m,) and (n,) booleans; all others are zero.

    Its Gram operator is that of the shorter of the sides that are left. Where that is the source's, too, its run is the
    source's run; else a product is two passes over W.
    """

    def __init__(self, source: Source, rows: Kept, columns: Kept, threads: int) -> None:
        restricted = _Restricted(source, rows, columns)
        super().__init__(restricted, threads)
        self.restricted = restricted
        self.device = source.device
        if source.factors is not None:
            kept = source.factors.rows[rows], source.factors.columns[columns]
            self.factors = Factors(*kept, source.factors.exponent)

    @property
    def scale_exponent(self) -> int:  # of the source
        return self.restricted.source.scale_exponent

    @scale_exponent.setter
    def scale_exponent(self, exponent: int) -> None:
        source = copy.copy(self.restricted.source)
        source.scale_exponent = exponent
        self.operator = self.restricted = _Restricted(source, self.restricted.rows, self.restricted.columns)
        self._squared_norm = self.restricted.frobenius_squared()

    def scaled(self, factors: Factors) -> RestrictedSource:
        operator = self.restricted.scaled(factors)
        return RestrictedSource(operator.source, operator.rows, operator.columns, self.threads)

    def start(
        self, width: int, seed: int, stream: int, *, precise: bool, energies: bool = False, parts: int = 1
    ) -> LanczosRun:
        source = self.restricted.source
        tall = source.shape[0] >= source.shape[1]
        if tall != (self.shape[0] >= self.shape[1]):
            return super().start(width, seed, stream, precise=precise, parts=parts)
        run = source.start(width, seed, stream, precise=precise, parts=parts)
        return _RestrictedRun(run, self.restricted.columns if tall else self.restricted.rows)

    def singular_values(self, *, keep_gram: bool = False) -> tuple[Array, float, bool]:
        values, norm, by_squares = self.restricted.source.singular_values()
        return values[: min(self.shape)], norm, by_squares


class _RestrictedRun:
    """A run on the source, whose other rows or columns on the short side are zero coordinates."""

    def __init__(self, run: LanczosRun, kept: Kept) -> None:
        self._run = run
        self._kept = kept
        self.energies = None  # of the source

    @property
    def steps(self) -> int:
        """As of the run."""
        return self._run.steps

    @property
    def parts(self) -> list[tuple[int, bool]]:
        """As of the run."""
        return self._run.parts

    @property
    def width(self) -> int:
        """As of the run."""
        return self._run.width

    @property
    def exhausted(self) -> bool:
        """As of the run."""
        return self._run.exhausted

    @property
    def zero_coordinates(self) -> int:
        """Those among the kept."""
        return self._run.zero_coordinates - int(np.count_nonzero(~self._kept))

    @property
    def stats(self) -> tuple[float, int, int, int]:
        """As of the run."""
        return self._run.stats

    def advance(self, steps: int) -> None:
        """As of the run."""
        self._run.advance(steps)

    def ritz(self, steps: int | None = None, part: int = 0, count: int | None = None) -> tuple[Array, Array, Array]:
        """As of the run."""
        return self._run.ritz(steps, part, count)

    def ritz_vectors(self, count: int, part: int = 0) -> NDArray[Any]:
        """Leading Ritz vectors of a part, (count, number kept): all others are zero there."""
        return np.ascontiguousarray(self._run.ritz_vectors(count, part)[:, self._kept])

    def values_at(self, numbers: Sequence[int]) -> Array:
        """As of the run."""
        return self._run.values_at(numbers)

    def values_above(self, theta: float) -> int:
        """As of the run."""
        return self._run.values_above(theta)

    def residual_near(self, theta: float) -> float:
        """As of the run."""
        return self._run.residual_near(theta)


class _Restricted:
    """Products with the rows and columns that are kept; methods as in `Multiplier`."""

    def __init__(self, source: Source, rows: Kept, columns: Kept) -> None:
        self.shape = int(rows.sum()), int(columns.sum())
        self.dtype = source.dtype
        self.source = source
        self.rows = rows
        self.columns = columns
        found = source.energies(None)
        self._energies = None if found is None else (found[0][rows], found[1][columns])

    def frobenius_squared(self) -> float | None:
        """Squared Frobenius norm; None where nobody sees the entries."""
        return None if self._energies is None else float(self._energies[0].sum())

    def singular_values(self) -> None:
        """Return None: the source knows."""

    def apply(self, X: Array) -> Array:
        """Gram product of the short side: rows of X (count, p) to (count, p)."""
        wide = self.shape[0] < self.shape[1]
        return self.multiply(self.multiply(X, transpose=wide), transpose=not wide)

    def multiply(self, X: NDArray[Any], *, transpose: bool) -> Array:
        """Rows of X (count, n) by ``W^T``: (count, m); with ``transpose`` (count, m) by W: (count, n)."""
        inner, outer = (self.rows, self.columns) if transpose else (self.columns, self.rows)
        whole = np.zeros((len(X), len(inner)))
        whole[:, inner] = X
        return np.asarray(self.source.multiply(whole, transpose=transpose), dtype=np.float64)[:, outer]

    def energies(self) -> Energies | None:
        """Sums of the squares of every row and column; None where nobody sees the entries."""
        return self._energies

    def scaled(self, factors: Factors) -> _Restricted:
        """The same rows and columns multiplied by factors."""
        rows, columns = np.zeros(len(self.rows)), np.zeros(len(self.columns))
        rows[self.rows], columns[self.columns] = factors.rows, factors.columns
        return _Restricted(self.source.scaled(Factors(rows, columns, factors.exponent)), self.rows, self.columns)
