"""The weights of one layer on their way: as the caller has them, in single precision, and back."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import (
    as_numpy,
    check_matrix,
    host_copy,
    in_storage,
    like,
    like_stored,
    raise_if_nonfinite,
    wide,
    widened,
)
from mpfast.reconstruct.factor import Factor, as_factor
from mpfast.reconstruct.fit import Fit, Grid
from mpfast.support import power_near

__all__ = ["Layer", "relative_rows"]

Single = NDArray[np.float32]
Mask = NDArray[np.bool_]


def relative_rows(roots: NDArray[np.float64]) -> Single:
    """Return what rows are multiplied with, (out,), over the largest, and not so little that it would be lost."""
    relative: Single = np.maximum((roots / roots.max()).astype(np.float32), np.float32(2.0**-30))
    return relative


def _masked(target: NDArray[Any], keep: Mask, dtype: str) -> _core.Matrix:
    """The weights that a mask keeps, as they were, zero elsewhere."""
    return _core.Matrix(np.where(keep, target, np.zeros((), target.dtype)), dtype)


class Layer:
    """A weight matrix (out, in) and the factor of its inputs, both checked.

    Attributes
    ----------
    weights : array of float32
        In units of `unit`, a power of two, so that the largest is near 1.
    """

    def __init__(self, W: Any, C: Any, threads: int) -> None:
        self.given = W
        self.threads = threads
        self._array, self._dtype = as_numpy(host_copy(W))
        check_matrix(self._array.shape, self._dtype, "W")
        self.shape: tuple[int, int] = self._array.shape
        self.factor: Factor = as_factor(C, self.shape, threads)
        numbers = widened(self._array) if self._dtype == "bfloat16" else self._array
        largest = max(float(numbers.max()), -float(numbers.min()))
        if not math.isfinite(largest):
            bad = ~np.isfinite(numbers)
            first = np.unravel_index(int(bad.argmax()), bad.shape)
            raise_if_nonfinite("W", int(bad.sum()), (int(first[0]), int(first[1])))
        self.unit = power_near(largest)
        self._rows: Single | None = None
        self.weights: Single = np.ascontiguousarray(self._scaled(numbers, 1 / self.unit), np.float32)

    def weigh_rows(self, roots: NDArray[np.float64]) -> None:
        """Multiply the rows: every row is refitted for itself, and this only says which of them may lose more."""
        self._rows = relative_rows(roots)[:, None]
        self.weights *= self._rows

    def wide(self) -> NDArray[np.float64]:
        """The weights as the caller has them, in float64."""
        return wide(self._array, self._dtype)

    def _scaled(self, numbers: NDArray[Any], factor: float, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Numbers times a power of two, in single precision where that holds both; in `out` if that is of the type."""
        narrow = numbers.dtype.itemsize <= 4 and 2.0**-100 < factor < 2.0**100
        dtype = np.dtype(np.float32 if narrow else np.float64)
        target = out if out is not None and out.dtype == dtype else None
        scaled: NDArray[Any] = np.multiply(numbers, factor, dtype=dtype, out=target)
        return scaled

    def start(self, *, again: bool) -> Single:
        """The weights to be changed; these are the layer's own unless they are needed again, as a refit does."""
        return self.weights.copy() if again else self.weights

    def fit(self, weights: NDArray[Any], keep: Mask, grid: Grid | None = None) -> Fit:
        """Return what has become of the weights: in units of `unit`, zero where pruned; they are overwritten."""
        if keep.all() and grid is None:
            stored = self._array.copy()
        else:
            if self._rows is not None:
                weights /= self._rows
            stored = in_storage(self._scaled(weights, self.unit, out=weights), self._dtype)
        # Whoever writes the new weights in the place of the old ones may still ask for errors.
        target = self._array.copy()
        return Fit(
            like_stored(stored, self._dtype, self.given),
            like(keep, self.given),
            self.factor.damping,
            self.factor.diagonal,
            None if grid is None else Grid(grid.bits, grid.group, grid.scale * np.float32(self.unit), grid.zero),
            _target=partial(_core.Matrix, target, self._dtype),
            _values=partial(_core.Matrix, stored, self._dtype),
            _masked=partial(_masked, target, keep, self._dtype),
            _factor=self.factor,
            _unit=self.unit,
            _threads=self.threads,
        )
