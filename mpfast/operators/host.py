"""Matrices in host memory, multiplied by the native kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import raise_if_nonfinite
from mpfast.operators.protocol import LanczosRun, gram_memory

__all__ = ["MatrixSource"]

Array = NDArray[np.float64]


class MatrixSource:
    """A matrix in host memory, multiplied by the native kernels; methods as in `mpfast.operators.protocol.Source`."""

    device = "cpu"
    exact_norm = True

    def __init__(self, matrix: _core.Matrix, threads: int) -> None:
        self.matrix = matrix
        self.threads = threads
        self.shape: tuple[int, int] = matrix.shape
        self.dtype: str = matrix.dtype
        self.scale_exponent: int = _core.scale_exponent(matrix)

    def start(self, width: int, seed: int, stream: int, *, precise: bool) -> LanczosRun:
        return _core.lanczos_run(self.matrix, width, seed, stream, self.scale_exponent, precise, self.threads)

    def squared_norm(self, measured: float) -> float | None:
        return measured

    def singular_values(self) -> tuple[Array, float]:
        with gram_memory(self.shape):
            values, fro_norm, nonfinite, row, col, _ = _core.exact_values(self.matrix, self.threads)
        raise_if_nonfinite("W", nonfinite, (row, col))
        return values, fro_norm

    def gram(self) -> Array:
        with gram_memory(self.shape):
            gram, nonfinite, row, col = _core.gram_matrix(self.matrix, self.scale_exponent, self.threads)
        raise_if_nonfinite("W", nonfinite, (row, col))
        return gram

    def multiply(self, X: NDArray[Any], *, transpose: bool) -> NDArray[Any]:
        return _core.multiply(self.matrix, np.ascontiguousarray(X), transpose, self.threads, self.scale_exponent)
