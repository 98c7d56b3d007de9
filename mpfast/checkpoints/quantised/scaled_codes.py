"""Floating-point codes, multiplied by the scale of the block that they are in: what many formats come to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import CORE_CODES, CodedRows
from mpfast.checkpoints.quantised.codes import VALUES, rounding_of

__all__ = ["ScaledCodes", "Scales", "by_rows", "in_blocks"]


class Scales(Protocol):
    """The scales of the blocks of rows x columns of every matrix."""

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of a block; the last ones may be cut off."""

    def read(self, matrix: int, rows: slice) -> NDArray[np.float32]:
        """Return the scales of a matrix by rows of blocks: (rows, columns of blocks)."""


class Codes(Protocol):
    """The codes of every matrix."""

    def read(self, matrix: int, rows: slice) -> NDArray[np.uint8]:
        """Return those of some rows: (rows, K), or (rows, K / 2) of two in a byte."""


@dataclass(frozen=True)
class ScaledCodes:
    """A `mpfast.arrays.CodeDecoder`: the value of each code times the scale of its block.

    Attributes
    ----------
    shape, stored, dtype
        As in `Decoder`.
    code : str
        The type of the codes, one of `mpfast.checkpoints.quantised.codes.VALUES`.
    codes : Codes
        Where they are.
    scales : Scales
        What the values are multiplied by.
    largest_is_exact : bool
        Whether the scales are such that the largest entry of every block, which is of one row, is the outermost code.
        It has no rounding then, which weighs in blocks of sixteen: without that, the variance of NVFP4 comes out 1.35
        times what it is.
    """

    shape: tuple[int, ...]
    stored: str
    dtype: str
    code: str
    codes: Codes
    scales: Scales
    largest_is_exact: bool = False

    def rows(self, matrix: int, rows: slice) -> NDArray[np.float32]:
        """Return some rows in float32."""
        found = self.coded(matrix, rows)
        if found is not None:
            return found.matrix(self.dtype).decoded()
        return self._decoded(self.table, matrix, rows, by_rows(self.scales, matrix, rows))

    def coded(self, matrix: int, rows: slice) -> CodedRows | None:
        """Return some rows as the core reads them; None where it has no such codes."""
        if self.code not in CORE_CODES:
            return None
        codes = self.codes.read(matrix, rows)
        if codes.strides[1] != codes.itemsize:
            codes = np.ascontiguousarray(codes)
        return CodedRows(self.code, codes, by_rows(self.scales, matrix, rows), self.scales.block[1])

    @property
    def table(self) -> NDArray[np.float32]:
        """The value of each byte, or the two values: (256,) or (256, 2)."""
        return VALUES[self.code]

    def rounding(self, matrix: int, rows: slice) -> float | None:
        """Return the mean variance of rounding to the grid of the table, by the codes that occur."""
        with np.errstate(all="ignore"):
            squares = np.square(by_rows(self.scales, matrix, rows))
        found = self._decoded(self._variances, matrix, rows, squares)
        if not found.size:
            return None
        total = float(found.sum(dtype=np.float64))
        if self.largest_is_exact:
            total -= self._of_largest(matrix, rows, squares)
        return total / found.size

    def _of_largest(self, matrix: int, rows: slice, squares: NDArray[np.float32]) -> float:
        """What the largest entries of the blocks have in the sum of all variances, by their codes."""
        values = np.abs(self.table)
        outermost = np.where(values == np.nanmax(values), self._variances, 0)
        codes = self.codes.read(matrix, rows)
        there = np.take(outermost, codes, axis=0).reshape(len(codes), -1, self.scales.block[1])
        with np.errstate(all="ignore"):
            return float((there.max(axis=-1) * squares).sum(dtype=np.float64))

    @cached_property
    def _variances(self) -> NDArray[np.float32]:
        return rounding_of(self.table.reshape(-1)).reshape(self.table.shape)

    def _decoded(
        self, table: NDArray[np.float32], matrix: int, rows: slice, scales: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        codes = np.ascontiguousarray(self.codes.read(matrix, rows))
        values = np.ascontiguousarray(table.reshape(256, -1))
        return _core.scaled_codes(codes, values, np.ascontiguousarray(scales, np.float32), self.scales.block[1])


def by_rows(scales: Scales, matrix: int, rows: slice) -> NDArray[np.float32]:
    """Return the scales of every row: (rows, columns of blocks)."""
    height = scales.block[0]
    first, last = rows.start // height, -(-rows.stop // height)
    stored = scales.read(matrix, slice(first, last))
    chosen: NDArray[np.float32] = stored[np.arange(rows.start, rows.stop, rows.step or 1) // height - first]
    return chosen


def in_blocks(operation: np.ufunc, numbers: NDArray[np.float32], values: NDArray[np.float32], width: int) -> None:
    """Combine (rows, K) in place with values (rows, ceil(K / width)); the last block may be narrower."""
    columns = numbers.shape[1]
    whole = columns // width
    blocks = numbers[:, : whole * width].reshape(len(numbers), whole, width)
    with np.errstate(all="ignore"):  # the values may be anything: whoever uses the numbers says so
        operation(blocks, values[:, :whole, None], out=blocks)
        if columns % width:
            numbers[:, : whole * width] = blocks.reshape(len(numbers), whole * width)  # what is cut out is a copy
            operation(numbers[:, whole * width :], values[:, whole:], out=numbers[:, whole * width :])
