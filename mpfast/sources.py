"""What a spectrum or an SVD is computed from: a matrix in memory, or an operator that somebody else multiplies with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import as_matrix, raise_if_nonfinite
from mpfast.dask_arrays import DaskOperator, is_dask_array
from mpfast.devices import has_cuda_backend, is_on_gpu, parse_device
from mpfast.operators import GramOperator, is_operator

Array = NDArray[np.float64]


class LanczosRun(Protocol):
    """A block Lanczos run of either backend."""

    @property
    def steps(self) -> int:
        """Steps taken so far."""

    @property
    def width(self) -> int:
        """Number of probes."""

    @property
    def exhausted(self) -> bool:
        """Whether further steps add nothing: the Krylov space has closed."""

    @property
    def zero_coordinates(self) -> int:
        """Rows or columns of the short side that are zero; known after the first step."""

    @property
    def stats(self) -> tuple[float, int, int, int]:
        """Squared Frobenius norm, number of non-finite entries, row and column of the first, as the first pass saw."""

    def advance(self, steps: int) -> None:
        """Take up to ``steps`` further steps."""

    def ritz(self, steps: int | None = None) -> tuple[Array, Array, Array]:
        """Ritz values, descending, their residuals, and the weights of the probes on them, (width, size)."""

    def ritz_vectors(self, count: int) -> NDArray[Any]:
        """Leading Ritz vectors, (count, p)."""


class Source(Protocol):
    """A matrix of shape (m, n) as the numerical methods see it.

    All methods work on the Gram operator of the short side, ``p = min(m, n)``, of ``2**-scale_exponent`` times W.
    """

    shape: tuple[int, int]
    dtype: str
    device: str
    scale_exponent: int
    exact_norm: bool

    def start(self, width: int, seed: int, stream: int, *, precise: bool) -> LanczosRun:
        """Begin a block Lanczos run; ``precise`` asks for fp64 products."""

    def squared_norm(self, measured: float) -> float | None:
        """Squared Frobenius norm of the scaled matrix; ``measured`` is what the first pass saw. None if unknown."""

    def singular_values(self) -> tuple[Array, float]:
        """All p singular values, descending, and the Frobenius norm."""

    def gram(self) -> Array:
        """Gram matrix of the short side of the scaled matrix, (p, p)."""

    def multiply(self, X: NDArray[Any], *, transpose: bool) -> NDArray[Any]:
        """Rows of ``X`` (count, n) times the scaled ``W^T``: (count, m); ``transpose``: (count, m) to (count, n)."""


def start_run(
    source: Source, width: int, seed: int, stream: int, steps: int, *, precise: bool, function: str
) -> LanczosRun:
    """Begin a block Lanczos run and take its first steps.

    ``scale_exponent`` comes from a sample of the entries. Where a larger one among the others would make products
    overflow, the run does not start; then it follows from the Frobenius norm, which the first pass has seen.

    Raises
    ------
    ValueError
        W has non-finite entries, or its squared Frobenius norm is no float64.
    """
    run = source.start(width, seed, stream, precise=precise)
    run.advance(steps)
    squared_norm, nonfinite, row, col = run.stats
    raise_if_nonfinite(function, "W", nonfinite, (row, col))
    if run.steps > 0:
        return run
    if not math.isfinite(squared_norm):
        raise ValueError(f"{function}(): the squares of the entries of W leave the range of float64; scale W")
    source.scale_exponent += math.frexp(math.sqrt(squared_norm))[1]
    run = source.start(width, seed, stream, precise=precise)
    run.advance(steps)
    return run


@contextmanager
def gram_memory(function: str, shape: tuple[int, int]) -> Iterator[None]:
    """Say what was too large: whoever runs out of memory here was about to build the Gram matrix of the short side."""
    try:
        yield
    except MemoryError as error:
        p = min(shape)
        raise MemoryError(
            f"{function}(): out of memory at the Gram matrix of W, {p} x {p}, {8 * p * p} bytes ({error}); "
            f"method='lanczos', or fewer singular triplets, need none"
        ) from error


class MatrixSource:
    """A matrix in host memory, multiplied by the native kernels; methods as in `Source`."""

    device = "cpu"
    exact_norm = True

    def __init__(self, matrix: _core.Matrix, function: str, threads: int) -> None:
        self.matrix = matrix
        self.function = function
        self.threads = threads
        self.shape: tuple[int, int] = matrix.shape
        self.dtype: str = matrix.dtype
        self.scale_exponent: int = _core.scale_exponent(matrix)

    def start(self, width: int, seed: int, stream: int, *, precise: bool) -> LanczosRun:
        return _core.lanczos_run(self.matrix, width, seed, stream, self.scale_exponent, precise, self.threads)

    def squared_norm(self, measured: float) -> float | None:
        return measured

    def singular_values(self) -> tuple[Array, float]:
        with gram_memory(self.function, self.shape):
            values, fro_norm, nonfinite, row, col, _ = _core.exact_values(self.matrix, self.threads)
        raise_if_nonfinite(self.function, "W", nonfinite, (row, col))
        return values, fro_norm

    def gram(self) -> Array:
        with gram_memory(self.function, self.shape):
            gram, nonfinite, row, col = _core.gram_matrix(self.matrix, self.scale_exponent, self.threads)
        raise_if_nonfinite(self.function, "W", nonfinite, (row, col))
        return gram

    def multiply(self, X: NDArray[Any], *, transpose: bool) -> NDArray[Any]:
        return _core.multiply(self.matrix, np.ascontiguousarray(X), transpose, self.threads, self.scale_exponent)


class OperatorSource:
    """A sparse matrix or a `LinearOperator`, multiplied by its owner in fp64; methods as in `Source`."""

    device = "cpu"
    scale_exponent = 0

    def __init__(self, operator: GramOperator | DaskOperator, threads: int) -> None:
        self.operator = operator
        self.threads = threads
        self.shape = operator.shape
        self.dtype = operator.dtype
        self._squared_norm = operator.frobenius_squared()
        self.exact_norm = self._squared_norm is not None

    def start(self, width: int, seed: int, stream: int, *, precise: bool) -> LanczosRun:
        return _core.lanczos_run_operator(self.operator.apply, min(self.shape), width, seed, stream, self.threads)

    def squared_norm(self, measured: float) -> float | None:
        return self._squared_norm

    def gram(self) -> Array:
        p = min(self.shape)
        with gram_memory(self.operator.function, self.shape):
            gram = np.empty((p, p))
        for first in range(0, p, 32):
            unit = np.eye(min(32, p - first), p, k=first)
            gram[first : first + len(unit)] = self.operator.apply(unit)
        return 0.5 * (gram + gram.T)

    def singular_values(self) -> tuple[Array, float]:
        known = self.operator.singular_values()
        if known is not None:
            return known, float(np.linalg.norm(known))
        gram = self.gram()
        eigenvalues = _core.symmetric_eigenvalues(gram, self.threads)
        values = np.sqrt(np.maximum(eigenvalues[::-1], 0.0))
        return values, float(np.sqrt(np.trace(gram)))

    def multiply(self, X: NDArray[Any], *, transpose: bool) -> NDArray[Any]:
        return self.operator.multiply(X, transpose=transpose)


class DaskSource(OperatorSource):
    """A Dask array, multiplied on its workers block by block; methods as in `Source`."""

    device = "dask"

    def __init__(self, operator: DaskOperator, threads: int) -> None:
        super().__init__(operator, threads)
        self.exact_norm = True

    def squared_norm(self, measured: float) -> float | None:
        return self.operator.frobenius_squared()  # known since the first product


def open_source(W: Any, *, function: str, threads: int, device: str | None = None) -> Source:
    """Turn what the caller handed in into a source; ``function`` names the public call in error messages.

    ``device`` None: computed where W lives.

    Raises
    ------
    ValueError, TypeError
        W is nothing that can be multiplied with, or ``device`` is not where it can be.
    """
    target = parse_device(device, function)
    if target is not None and (is_dask_array(W) or is_operator(W)):
        raise ValueError(f"{function}(): W is multiplied by its owner, so device={str(target)!r} has no effect")
    if is_dask_array(W):
        return DaskSource(DaskOperator(W, function, threads), threads)
    if is_operator(W):
        return OperatorSource(GramOperator(W, function), threads)
    if is_on_gpu(W) and has_cuda_backend():
        from mpfast.device_sources import open_device_array

        source = open_device_array(W, function, threads)
        if device is not None and str(target or device) != source.device:
            raise ValueError(f"{function}(): W is on {source.device}, not on {target or device}; move it first")
        return source
    matrix = as_matrix(W, function=function)
    if target is None:
        return MatrixSource(matrix, function, threads)
    from mpfast.device_sources import send_to_device

    return send_to_device(matrix, target, function, threads)
