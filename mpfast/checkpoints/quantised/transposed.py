"""The transposes of the matrices of a quantised tensor."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import Decoder

__all__ = ["Transposed"]


class Transposed:
    """A `mpfast.arrays.Decoder` of the transposes of another's matrices.

    Rows of a transpose lie across all rows that are decoded: the last matrix is kept in float32.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._kept: tuple[int, NDArray[np.float32]] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., K, N)."""
        *stack, rows, columns = self._decoder.shape
        return (*stack, columns, rows)

    @property
    def stored(self) -> str:
        """As of the other."""
        return self._decoder.stored

    @property
    def dtype(self) -> str:
        """As of the other."""
        return self._decoder.dtype

    def rows(self, matrix: int, rows: slice) -> NDArray[np.float32]:
        """Return rows of the transpose of one matrix."""
        kept = self._kept  # one object, whichever thread put it there
        if kept is None or kept[0] != matrix:
            kept = matrix, self._decoder.rows(matrix, slice(0, self._decoder.shape[-2], 1))
            self._kept = kept
        return np.ascontiguousarray(kept[1][:, rows].T)

    def rounding(self, matrix: int, rows: slice) -> float | None:
        """Return the mean over the whole matrix: that of a part along its inputs is not known."""
        whole = (rows.start, rows.stop, rows.step) == (0, self.shape[-2], 1)
        return self._decoder.rounding(matrix, slice(0, self._decoder.shape[-2], 1)) if whole else None
