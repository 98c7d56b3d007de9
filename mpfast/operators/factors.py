"""Factors of the rows and columns of a matrix, which multiply the vectors beside it instead of its entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.support import InvalidValueError

__all__ = ["Energies", "Factored", "Factors", "times"]

Array = NDArray[np.float64]
Energies = tuple[Array, Array]

# Factors further from their median than that, in powers of two, go with fp64 products: in fp32 a product could then
# overflow beside entries whose squares do not.
SINGLE_RANGE = 60
# And further than that with none.
DOUBLE_RANGE = 400


@dataclass(frozen=True, eq=False)
class Factors:
    """What the entries of a matrix are multiplied by: ``2**exponent rows[i] columns[j]``.

    Attributes
    ----------
    rows, columns
        Shapes (m,) and (n,), float64: 0, or about 1 in the median.
    exponent
        Of the power of two that was taken out of them.
    """

    rows: Array
    columns: Array
    exponent: int

    @classmethod
    def of(cls, row_scale: Any, column_scale: Any, shape: tuple[int, int]) -> Factors:
        """Check factors and bring them near one; rows and columns of factor 0 count as zero.

        Raises
        ------
        ValueError
            They are not one number each for every row and column, or negative, or not finite, or too far apart.
        """
        rows, row_exponent = _near_one("row_scale", row_scale, shape[0], "rows")
        columns, column_exponent = _near_one("column_scale", column_scale, shape[1], "columns")
        return cls(rows, columns, row_exponent + column_exponent)

    def of_more(self, row_scale: Any, column_scale: Any) -> Factors:
        """These, and further ones."""
        more = Factors.of(row_scale, column_scale, (len(self.rows), len(self.columns)))
        both = Factors.of(self.rows * more.rows, self.columns * more.columns, (len(self.rows), len(self.columns)))
        return Factors(both.rows, both.columns, self.exponent + more.exponent + both.exponent)

    @property
    def pair(self) -> Energies:
        """Those of the rows and those of the columns, without the power of two."""
        return self.rows, self.columns

    @property
    def need_double(self) -> bool:
        """Whether fp32 products could overflow, or lose what the factors bring up."""
        return max(_reach(self.rows), _reach(self.columns)) > SINGLE_RANGE

    def across(self, transpose: bool) -> Energies:
        """The factors of the entries of vectors that W (``transpose``: W^T) is multiplied with, and of the products."""
        return (self.rows, self.columns) if transpose else (self.columns, self.rows)


class Factored:
    """Part of a source whose kernels are given the matrix as it is stored and, beside it, the factors."""

    scale_exponent: int
    factors: Factors | None

    @property
    def kernel_exponent(self) -> int:
        """The scale exponent of products with the matrix and its factors, whose power of two they do not know."""
        return self.scale_exponent - (0 if self.factors is None else self.factors.exponent)

    @property
    def kernel_factors(self) -> Energies | None:
        """The factors of rows and columns without their power of two; None where there are none."""
        return None if self.factors is None else self.factors.pair


def times(vectors: NDArray[Any], factors: Array) -> NDArray[Any]:
    """Vectors, one a row, with every entry multiplied by its factor, in their own precision; by 0: zero."""
    with np.errstate(invalid="ignore"):
        product: NDArray[Any] = vectors * factors.astype(vectors.dtype)
    if not factors.all():
        product[:, factors == 0] = 0
    return product


def _near_one(name: str, given: Any, length: int, lines: str) -> tuple[Array, int]:
    """The factors over a power of two, near their median, and its exponent."""
    factors = np.asarray(given, dtype=np.float64)
    if factors.shape != (length,):
        raise InvalidValueError(
            name, f"must have shape ({length},), one factor for each of the {lines}, not {factors.shape}"
        )
    if not (np.isfinite(factors).all() and (factors >= 0).all()):
        raise InvalidValueError(
            name, "has factors that are negative or not finite", "0 stands for what is to count as zero"
        )
    live = factors[factors > 0]
    exponent = int(np.floor(np.median(np.frexp(live)[1]))) - 1 if len(live) else 0
    near = np.ldexp(factors, -exponent)
    if _reach(near) > DOUBLE_RANGE or not near[factors > 0].all():
        raise InvalidValueError(
            name, f"goes from {live.min():.3g} to {live.max():.3g}: products would leave the range of float64"
        )
    return near, exponent


def _reach(factors: Array) -> int:
    """How far from one factors lie that are not 0, in powers of two."""
    live = factors[factors > 0]
    return int(np.abs(np.frexp(live)[1] - 1).max(initial=0))
