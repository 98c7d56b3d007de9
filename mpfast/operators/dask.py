"""Dask arrays as operators: each block of rows (or columns) is multiplied where it lies, one pass over W a product."""

from __future__ import annotations

import copy
import importlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import as_matrix, check_matrix, raise_if_nonfinite, refuse_masked
from mpfast.operators.factors import Energies, Factors, times
from mpfast.operators.linear_operator import OperatorSource
from mpfast.operators.protocol import LanczosRun
from mpfast.support import InvalidValueError

Array = NDArray[np.float64]

__all__ = ["DaskOperator", "DaskSource", "aligned", "is_dask_array"]


def is_dask_array(W: Any) -> bool:
    """Whether W is a Dask array; Dask is not imported for it."""
    dask = sys.modules.get("dask.array")
    return dask is not None and isinstance(W, dask.Array)


class DaskOperator:
    """The Gram operator of the short side of a Dask array, in fp64; methods as in `Multiplier`.

    Blocks are merged along the short side, so that a block holds whole rows of a tall array, whole columns of a wide
    one. An array that is to stay on its workers from one pass to the next must have been persisted.

    Parameters
    ----------
    W
        2-D Dask array of float64, float32 or float16.
    threads
        For the product of one block.
    """

    def __init__(self, W: Any, threads: int) -> None:
        if any(math.isnan(extent) for extent in W.shape):
            raise InvalidValueError("W", "has an unknown shape", "call W.compute_chunk_sizes() first")
        shape = tuple(int(extent) for extent in W.shape)
        check_matrix(shape, W.dtype.name, "W")
        self.shape: tuple[int, int] = (shape[0], shape[1])
        self.dtype: str = W.dtype.name
        self._threads = threads or 1  # a worker has other blocks for its other cores
        self._wide = self.shape[0] < self.shape[1]
        merged = W.rechunk({0: -1}) if self._wide else W.rechunk({1: -1})
        self._blocks: list[Any] = list(merged.to_delayed().ravel())
        long_chunks = merged.chunks[1 if self._wide else 0]
        self._offsets = np.concatenate([[0], np.cumsum(long_chunks)]).astype(int).tolist()
        self._factors: Factors | None = None
        self._squares: float | None = None
        self._energies: Energies | None = None
        self._asked_for_energies = False

    def scaled(self, factors: Factors) -> DaskOperator:
        """The same matrix with its rows and columns multiplied by factors, but for their power of two."""
        other = copy.copy(self)
        other._factors, other._squares, other._energies = factors, None, None
        return other

    def ask_for_energies(self) -> None:
        """Let the next product find the energies, too."""
        self._asked_for_energies = True

    def energies(self) -> Energies:
        """Sums of the squares of every row and column: as a product has seen them, else by a product with nothing."""
        if self._energies is None:
            self.ask_for_energies()
            self.apply(np.zeros((1, min(self.shape))))
        assert self._energies is not None
        return self._energies

    def frobenius_squared(self) -> float | None:
        """Squared Frobenius norm, as the first product saw it; None before."""
        return self._squares

    def singular_values(self) -> None:
        """Return None: nothing is known in advance."""

    def apply(self, X: Array) -> Array:
        """Gram product of the short side: rows of X (count, p) to (count, p)."""
        total = np.zeros_like(X)
        squares = 0.0
        energies = self._asked_for_energies and self._energies is None
        short, long = np.zeros(min(self.shape)), np.zeros(max(self.shape))
        found = self._each(_block_gram, X, [(self._wide, factors, energies) for factors in self._block_factors()])
        for number, (product, trace, nonfinite, row, col, seen) in enumerate(found):
            at = self._offsets[number]
            raise_if_nonfinite("W", nonfinite, (row, col + at) if self._wide else (row + at, col))
            total += product
            squares += trace
            if seen is not None:
                long[at : self._offsets[number + 1]] = seen[1 if self._wide else 0]
                short += seen[0 if self._wide else 1]
        self._squares = squares
        if energies:
            self._energies = (short, long) if self._wide else (long, short)
        return total

    def _block_factors(self) -> list[Energies | None]:
        """Factors of the rows and columns of every block."""
        factors = self._factors
        if factors is None:
            return [None] * len(self._blocks)
        spans = zip(self._offsets[:-1], self._offsets[1:], strict=True)
        if self._wide:
            return [(factors.rows, factors.columns[a:b]) for a, b in spans]
        return [(factors.rows[a:b], factors.columns) for a, b in spans]

    def multiply(self, X: NDArray[Any], *, transpose: bool) -> Array:
        """Rows of X (count, n) by ``W^T``: (count, m); with ``transpose`` (count, m) by W: (count, n)."""
        if self._factors is not None:
            inner, outer = self._factors.across(transpose)
            return times(self._plain_product(times(X, inner), transpose=transpose), outer)
        return self._plain_product(X, transpose=transpose)

    def _plain_product(self, X: NDArray[Any], *, transpose: bool) -> Array:
        """With the matrix as it is stored."""
        spans = list(zip(self._offsets[:-1], self._offsets[1:], strict=True))
        if transpose == self._wide:  # the long side is the result's
            result = np.concatenate(list(self._each(_block_product, X, [transpose] * len(spans))), axis=1)
        else:
            result = np.zeros((len(X), self.shape[1] if transpose else self.shape[0]))
            for product in self._each(_block_product, None, [transpose] * len(spans), [X[:, a:b] for a, b in spans]):
                result += product
        if not np.isfinite(result).all():
            raise InvalidValueError("products with W", "are not finite (NaN or inf)", "clean its entries first")
        return result

    def _each(
        self,
        function: Callable[..., Any],
        X: NDArray[Any] | None,
        options: Sequence[Any],
        pieces: list[NDArray[Any]] | None = None,
    ) -> Iterator[Any]:
        """Results of all blocks, in their order."""
        dask: Any = importlib.import_module("dask")
        task = dask.delayed(function, pure=False)
        shared = dask.delayed(np.ascontiguousarray(X), pure=False) if X is not None else None
        tasks = [
            task(block, shared if pieces is None else np.ascontiguousarray(pieces[number]), option, self._threads)
            for number, (block, option) in enumerate(zip(self._blocks, options, strict=True))
        ]
        return iter(dask.compute(*tasks))


def aligned(array: Any) -> Any:
    """Return an array whose entries lie where they should: what comes over the network may lie anywhere."""
    return np.require(array, requirements="A") if isinstance(array, np.ndarray) else array


def _block_gram(
    block: Any, X: Array, options: tuple[bool, Energies | None, bool], threads: int
) -> tuple[Array, float, int, int, int, Energies | None]:
    wide, factors, with_energies = options
    refuse_masked(block, "W")
    matrix = as_matrix(aligned(np.asarray(block)))
    rows, columns = matrix.shape
    energies = (np.empty(rows), np.empty(columns)) if with_energies else None
    side = "left" if wide else "right"
    product, trace, nonfinite, row, col = _core.gram_product(
        matrix, X, side, threads, factors=factors, energies=energies
    )
    return product, trace, nonfinite, row, col, energies


def _block_product(block: Any, X: Array, transpose: bool, threads: int) -> Array:
    refuse_masked(block, "W")
    matrix = as_matrix(aligned(np.asarray(block)))
    product: Array = _core.multiply(matrix, X, transpose, threads)
    return product


class DaskSource(OperatorSource):
    """A Dask array, multiplied on its workers block by block; methods as in `mpfast.operators.protocol.Source`."""

    device = "dask"
    operator: DaskOperator

    def __init__(self, operator: DaskOperator, threads: int) -> None:
        super().__init__(operator, threads)
        self.exact_norm = True

    def start(
        self, width: int, seed: int, stream: int, *, precise: bool, energies: bool = False, parts: int = 1
    ) -> LanczosRun:
        if energies:
            self.operator.ask_for_energies()
        return super().start(width, seed, stream, precise=precise, energies=energies, parts=parts)

    def squared_norm(self, measured: float) -> float | None:
        return self.operator.frobenius_squared()  # known since the first product
