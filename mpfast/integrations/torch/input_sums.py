"""Sums over the inputs of a block's matrices, of the dense model's stream and of the compressed one together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import as_matrix

__all__ = ["InputMoments", "InputSums", "mirror"]

Array = NDArray[np.float64]

# Rows that are mirrored at a time: no second matrix of the same size is needed.
_MIRRORED_ROWS = 256


@dataclass
class InputMoments:
    """Means over the inputs that a matrix gets, x those of the dense model and y those of the compressed one.

    Attributes
    ----------
    rows : int
        How many there were.
    own : array
        Mean of ``y y^T``.
    cross, dense : array
        Means of ``x y^T`` and ``x x^T``; `own` itself where only y is known.
    """

    rows: int
    own: Array
    cross: Array
    dense: Array


class InputSums:
    """Adds up products of inputs: of both streams side by side, as long as these belong together row by row."""

    def __init__(self) -> None:
        self.rows = 0
        self._sums: Array | None = None
        self._both = False
        self._moments: InputMoments | None = None

    @classmethod
    def of(cls, sums: Array, rows: int) -> InputSums:
        """Take over a sum of ``y y^T`` over so many rows, of which the upper triangle counts, and its memory."""
        found = cls()
        found._sums, found.rows = sums, rows
        return found

    def add(self, own: torch.Tensor, dense: torch.Tensor | None, threads: int) -> None:
        """Add rows, (rows, inputs), of the compressed stream and, where they are the same ones, of the dense one."""
        assert self._moments is None, "the means were taken"
        both = dense is not None
        if self._sums is None:
            self._both = both
        elif self._both and not both:  # from here on only one of them is known
            half = len(self._sums) // 2
            self._sums, self._both = np.ascontiguousarray(self._sums[half:, half:]), False
        joined = torch.cat([dense, own], dim=1) if self._both and dense is not None else own
        if joined.dtype not in (torch.float32, torch.float64):
            joined = joined.float()
        if self._sums is None:
            self._sums = np.zeros((joined.shape[1], joined.shape[1]))
        self.rows += len(own)
        if len(own):
            _core.add_gram(as_matrix(joined.detach().cpu().contiguous(), name="x"), self._sums, threads)

    def sums(self) -> Array:
        """The sum of ``y y^T``, a copy."""
        assert self._sums is not None, "nothing was added"
        assert self._moments is None, "the means were taken"
        half = len(self._sums) // 2 if self._both else 0
        whole = self._sums[half:, half:].copy()
        mirror(whole)
        return whole

    def moments(self) -> InputMoments:
        """The means, in the memory of the sums: nothing can be added any more. There must be rows."""
        assert self._sums is not None, "nothing was added"
        if self._moments is None:
            self._sums /= self.rows
            if self._both:
                half = len(self._sums) // 2
                own, dense = self._sums[half:, half:], self._sums[:half, :half]
                mirror(own)
                mirror(dense)
                self._moments = InputMoments(self.rows, own, self._sums[:half, half:], dense)
            else:
                mirror(self._sums)
                self._moments = InputMoments(self.rows, self._sums, self._sums, self._sums)
        return self._moments


def mirror(square: Array) -> None:
    """Make a symmetric matrix of its upper triangle, in place."""
    for begin in range(0, len(square), _MIRRORED_ROWS):
        end = begin + _MIRRORED_ROWS
        square[begin:end, :begin] = square[:begin, begin:end].T
        corner = square[begin:end, begin:end]
        corner[...] = np.triu(corner) + np.triu(corner, 1).T
