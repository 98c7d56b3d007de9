"""Matrices in host memory, multiplied by the native kernels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import raise_if_nonfinite
from mpfast.operators.factors import Energies, Factored, Factors, times
from mpfast.operators.protocol import LanczosRun, gram_memory

__all__ = ["MatrixSource", "values_together"]

Array = NDArray[np.float64]
# Singular values, Frobenius norm, number of non-finite entries, row and column of the first, and the route.
ExactValues = tuple[Array, float, int, int, int, str]


# A Gram matrix of up to so many entries, 8 MB, is kept from the singular values for what asks for it next.
KEPT_ENTRIES = 1 << 20
# Of the scale of a Gram matrix that the core forms: beyond, its inverse is no number.
LARGEST_EXPONENT = 1022


class MatrixSource(Factored):
    """A matrix in host memory, multiplied by the native kernels; methods as in `mpfast.operators.protocol.Source`."""

    device = "cpu"
    exact_norm = True
    factors: Factors | None = None

    def __init__(self, matrix: _core.Matrix, threads: int) -> None:
        self.matrix = matrix
        self.threads = threads
        self.shape: tuple[int, int] = matrix.shape
        self.dtype: str = matrix.dtype
        self.scale_exponent: int = _core.scale_exponent(matrix)
        self._kept_gram: tuple[Array, int] | None = None
        self._kept_values: ExactValues | None = None

    def scaled(self, factors: Factors) -> MatrixSource:
        other = copy.copy(self)
        other.factors = factors
        other._kept_gram = None
        other._kept_values = None
        other.scale_exponent = _core.scale_exponent(self.matrix, factors.pair) + factors.exponent
        return other

    def start(
        self, width: int, seed: int, stream: int, *, precise: bool, energies: bool = False, parts: int = 1
    ) -> LanczosRun:
        double = precise or (self.factors is not None and self.factors.need_double)
        return _core.lanczos_run(
            self.matrix,
            width,
            seed,
            stream,
            self.kernel_exponent,
            double,
            self.threads,
            factors=self.kernel_factors,
            energies=energies,
            parts=parts,
        )

    def squared_norm(self, measured: float) -> float | None:
        return measured

    def singular_values(self, *, keep_gram: bool = False) -> tuple[Array, float, bool]:
        found, self._kept_values = self._kept_values, None
        values, fro_norm, nonfinite, row, col, route = found or self._exact_values(keep_gram)
        raise_if_nonfinite("W", nonfinite, (row, col))
        unit = 1.0 if self.factors is None else 2.0**self.factors.exponent
        return values * unit, fro_norm * unit, route == "gram"

    def _exact_values(self, keep_gram: bool) -> ExactValues:
        p, exponent = min(self.shape), self.kernel_exponent
        is_kept = keep_gram and p * p <= KEPT_ENTRIES and abs(exponent) <= LARGEST_EXPONENT
        with gram_memory(self.shape):
            gram = np.empty((p, p)) if is_kept else None
            found = _core.exact_values(self.matrix, self.threads, self.kernel_factors, gram, exponent if is_kept else 0)
        self._kept_gram = None if gram is None or found[2] else (gram, exponent)
        return found

    def gram(self) -> Array:
        if self._kept_gram is not None:
            (kept, exponent), self._kept_gram = self._kept_gram, None
            return kept if exponent == self.kernel_exponent else np.ldexp(kept, 2 * (exponent - self.kernel_exponent))
        with gram_memory(self.shape):
            gram, nonfinite, row, col = _core.gram_matrix(
                self.matrix, self.kernel_exponent, self.threads, self.kernel_factors
            )
        raise_if_nonfinite("W", nonfinite, (row, col))
        return gram

    def multiply(self, X: NDArray[Any], *, transpose: bool) -> NDArray[Any]:
        if self.factors is None:
            return _core.multiply(self.matrix, np.ascontiguousarray(X), transpose, self.threads, self.kernel_exponent)
        inner, outer = self.factors.across(transpose)
        vectors = times(X.astype(np.float64) if self.factors.need_double else X, inner)
        return times(_core.multiply(self.matrix, vectors, transpose, self.threads, self.kernel_exponent), outer)

    def energies(self, run: LanczosRun | None) -> Energies | None:
        if run is not None and run.energies is not None:
            return run.energies
        rows, columns, nonfinite, row, col = _core.energies(
            self.matrix, self.kernel_exponent, self.threads, self.kernel_factors
        )
        raise_if_nonfinite("W", nonfinite, (row, col))
        return rows, columns


def values_together(sources: Sequence[MatrixSource], threads: int) -> None:
    """Have all singular values of matrices without factors formed in one call, each matrix by one thread.

    Each source keeps its own for who asks next.
    """
    if not sources:
        return
    largest_first = sorted(sources, key=lambda source: min(source.shape) ** 2 * max(source.shape), reverse=True)
    with gram_memory(max((source.shape for source in sources), key=min)):
        found = _core.exact_values_of_each([source.matrix for source in largest_first], threads)
    for source, values in zip(largest_first, found, strict=True):
        source._kept_values = values
