"""Second moments of a layer's inputs as they come in: checked, and viewed as the native core reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays.views import as_numpy, check_matrix, host_copy, raise_if_nonfinite, wide
from mpfast.support import InvalidValueError

__all__ = ["SecondMoment"]

Array = NDArray[np.float64]

# What rounding may make of |C_ij - C_ji| and |C_ij| - sqrt(C_ii C_jj), in units of the largest diagonal entry.
_ROUNDING = 1e-4


@dataclass(frozen=True, eq=False)
class SecondMoment:
    """The mean C of ``x x^T`` over inputs x, (in, in).

    Attributes
    ----------
    array, dtype
        As the caller has it, in host memory; see `as_numpy`.
    matrix
        The same for the core.
    diagonal
        In float64, (in,), not negative.
    """

    array: NDArray[Any]
    dtype: str
    matrix: _core.Matrix
    diagonal: Array

    @classmethod
    def of(cls, C: Any, name: str, threads: int) -> SecondMoment:
        """View what the caller handed in as the argument `name`.

        Raises
        ------
        InvalidValueError
            C is not square, not symmetric, has non-finite entries, a negative diagonal or a ``C_ij**2`` above
            ``C_ii C_jj``.
        InvalidTypeError
            C is no array of real numbers.
        """
        array, dtype = as_numpy(host_copy(C), name=name)
        check_matrix(array.shape, dtype, name)
        if array.shape[0] != array.shape[1]:
            raise InvalidValueError(name, f"must be square, but has shape {array.shape}")
        matrix = _core.Matrix(array, dtype)
        diagonal, excess, *bad = _core.examine_moment(matrix, threads)
        raise_if_nonfinite(name, bad[0], (bad[1], bad[2]))
        if float(diagonal.min()) < 0 or excess > _ROUNDING * max(float(diagonal.max()), 0.0):
            raise InvalidValueError(
                name,
                "is no second moment: it must be symmetric, its diagonal must not be negative, and no |C_ij| be above "
                "sqrt(C_ii C_jj)",
            )
        return cls(array, dtype, matrix, diagonal)

    def symmetric(self) -> Array:
        """C in float64, the mean of both triangles; an array of its own."""
        entries = wide(self.array, self.dtype)
        mean: Array = (entries + entries.T) / 2
        return mean
