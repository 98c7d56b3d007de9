"""Integer codes on a uniform grid of each block: ``(code - zero) * scale + bias``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mpfast.checkpoints.quantised.group import NotDecodedError
from mpfast.checkpoints.quantised.scaled_codes import Scales, by_rows, in_blocks

__all__ = ["Affine", "Integers", "described", "group_width"]


class Integers(Protocol):
    """The codes of every matrix."""

    def read(self, matrix: int, rows: slice) -> NDArray[Any]:
        """Return those of some rows: (rows, K) integers."""


@dataclass(frozen=True)
class Affine:
    """A `mpfast.arrays.Decoder`: ``(code - zero) * scale + bias``, each of the three by blocks of its own.

    Attributes
    ----------
    shape, stored, dtype
        As in `Decoder`.
    codes : Integers
        What is stored of each entry.
    scales : Scales
        The steps of the grids, of either sign.
    zeros : Scales or float
        The codes of 0: by blocks, or one for all.
    biases : Scales or None
        What is added at last.
    nearest : bool
        Whether entries were rounded to the nearest point of their grid, none of them from beyond its ends. Where
        grids are narrowed or roundings learned, what that did to the entries is not in the file.
    """

    shape: tuple[int, ...]
    stored: str
    codes: Integers
    scales: Scales
    zeros: Scales | float = 0.0
    biases: Scales | None = None
    nearest: bool = True
    dtype: str = "float32"

    def rows(self, matrix: int, rows: slice) -> NDArray[np.float32]:
        """Return some rows in float32."""
        numbers = self.codes.read(matrix, rows).astype(np.float32)
        if isinstance(self.zeros, float):
            numbers -= np.float32(self.zeros)
        else:
            _combine(np.subtract, numbers, self.zeros, matrix, rows)
        _combine(np.multiply, numbers, self.scales, matrix, rows)
        if self.biases is not None:
            _combine(np.add, numbers, self.biases, matrix, rows)
        return numbers

    def rounding(self, matrix: int, rows: slice) -> float | None:
        """Return the mean of ``scale^2 / 12`` over the entries; None where they were not rounded to the nearest."""
        if not self.nearest:
            return None
        scales = by_rows(self.scales, matrix, rows)
        width, columns = self.scales.block[1], self.shape[-1]
        # The last block may be cut off, and counts by what there is of it.
        widths = np.diff(np.minimum(np.arange(scales.shape[1] + 1) * width, columns))
        with np.errstate(all="ignore"):
            squares = np.square(scales, dtype=np.float64) @ widths
        return float(squares.mean() / (12 * columns)) if squares.size else None


def _combine(operation: np.ufunc, numbers: NDArray[np.float32], part: Scales, matrix: int, rows: slice) -> None:
    in_blocks(operation, numbers, by_rows(part, matrix, rows), part.block[1])


def group_width(columns: int, groups: int, said: Any) -> int:
    """Return how many neighbouring columns have a scale together.

    Parameters
    ----------
    columns, groups
        As many of each.
    said
        What the configuration says; -1 or None where it leaves that open.

    Raises
    ------
    NotDecodedError
        No width makes that many groups, or several do.
    """
    if type(said) is int and said > 0:
        if -(-columns // said) == groups:
            return said
        raise NotDecodedError(f"has {groups} scales for {columns} inputs, where the configuration says {said} of each")
    if groups > 0 and columns % groups == 0:
        return columns // groups
    raise NotDecodedError(f"has {groups} scales for {columns} inputs, and nothing says how they are shared out")


def described(bits: int, width: int, columns: int) -> str:
    """Say in a few words how a matrix is stored: ``"int4 g128"``."""
    return f"int{bits} by row" if width == columns else f"int{bits} g{width}"
