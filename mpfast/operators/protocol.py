"""What a spectrum or an SVD needs of a matrix, whoever multiplies with it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import raise_if_nonfinite
from mpfast.operators.factors import Energies, Factors
from mpfast.support import InvalidValueError, OutOfMemoryError

__all__ = ["PART_WIDTH", "RUN_WIDTH", "LanczosRun", "Multiplier", "Source", "gram_memory", "start_run"]

Array = NDArray[np.float64]

# Probes of one part of a Lanczos run: the group of vectors that the host's kernels multiply at a time. Wider parts
# would be multiplied no faster, and their Ritz values and their orthogonalisation cost more.
PART_WIDTH = 8
# Probes of one run: a pass takes no more vectors at a time.
RUN_WIDTH = 32


class LanczosRun(Protocol):
    """A block Lanczos run of either backend, in one part or several."""

    @property
    def steps(self) -> int:
        """Steps taken so far by every part that was not exhausted before."""

    @property
    def parts(self) -> list[tuple[int, bool]]:
        """Steps taken so far by each part, and whether its Krylov space has closed."""

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

    @property
    def energies(self) -> Energies | None:
        """Of the rows and columns, (m,) and (n,), as the first pass saw them; None where they were not asked for."""

    def advance(self, steps: int) -> None:
        """Take up to ``steps`` further steps."""

    def ritz(self, steps: int | None = None, part: int = 0, count: int | None = None) -> tuple[Array, Array, Array]:
        """Ritz values of a part, descending, their residuals, and the weights of its probes on them, (width, size).

        All of them, or at least the leading ``count``.
        """

    def ritz_vectors(self, count: int, part: int = 0) -> NDArray[Any]:
        """Leading Ritz vectors of a part, (count, p)."""

    def values_at(self, numbers: Sequence[int]) -> Array:
        """Ritz values by their numbers, 0 for the largest, without a decomposition: some are wrong now and then."""

    def values_above(self, theta: float) -> int:
        """How many Ritz values exceed theta, likewise."""

    def residual_near(self, theta: float) -> float:
        """The residual of the Ritz value next to theta, likewise."""


class Multiplier(Protocol):
    """A matrix of shape (m, n) whose owner multiplies with it in fp64: sparse, distributed, or a product."""

    shape: tuple[int, int]
    dtype: str

    def frobenius_squared(self) -> float | None:
        """Squared Frobenius norm; None where nobody sees the entries, or before anybody has seen them."""

    def singular_values(self) -> Array | None:
        """All p singular values, descending, where the owner knows them."""

    def apply(self, X: Array) -> Array:
        """Gram product of the short side: rows of X (count, p) to (count, p)."""

    def multiply(self, X: NDArray[Any], *, transpose: bool) -> Array:
        """Rows of X (count, n) by ``W^T``: (count, m); with ``transpose`` (count, m) by W: (count, n)."""

    def energies(self) -> Energies | None:
        """Sums of the squares of every row and column; None where nobody sees the entries."""

    def scaled(self, factors: Factors) -> Multiplier:
        """The same matrix with its rows and columns multiplied by factors, but for their power of two."""


class Source(Protocol):
    """A matrix of shape (m, n) as the numerical methods see it.

    All methods work on the Gram operator of the short side, ``p = min(m, n)``, of ``2**-scale_exponent`` times W. Where
    there are ``factors`` W stands for the matrix that they make of the one that is read.
    """

    shape: tuple[int, int]
    dtype: str
    device: str
    scale_exponent: int
    exact_norm: bool
    factors: Factors | None

    def start(
        self, width: int, seed: int, stream: int, *, precise: bool, energies: bool = False, parts: int = 1
    ) -> LanczosRun:
        """Begin a block Lanczos run; ``precise`` asks for fp64 products, ``energies`` for those of the first pass.

        Its ``parts``, of nearly equal widths and with streams of probes from ``stream`` on, have Krylov spaces of their
        own; a pass multiplies for all.
        """

    def squared_norm(self, measured: float) -> float | None:
        """Squared Frobenius norm of the scaled matrix; ``measured`` is what the first pass saw. None if unknown."""

    def singular_values(self, *, keep_gram: bool = False) -> tuple[Array, float, bool]:
        """All p singular values, descending, the Frobenius norm, and whether the values are roots of those of W^T W.

        ``keep_gram`` announces that `gram` is asked for next: a Gram matrix that is formed may then be kept for it.
        """

    def gram(self) -> Array:
        """Gram matrix of the short side of the scaled matrix, (p, p)."""

    def multiply(self, X: NDArray[Any], *, transpose: bool) -> NDArray[Any]:
        """Rows of ``X`` (count, n) times the scaled ``W^T``: (count, m); ``transpose``: (count, m) to (count, n)."""

    def energies(self, run: LanczosRun | None) -> Energies | None:
        """As `mpfast.operators.energies`."""

    def scaled(self, factors: Factors) -> Source:
        """The matrix that is read, with these factors in the place of those that it has."""


SourceT = TypeVar("SourceT", bound=Source)


def start_run(
    source: SourceT,
    width: int,
    seed: int,
    stream: int,
    steps: int,
    *,
    precise: bool,
    energies: bool = False,
    parts: int = 1,
) -> tuple[LanczosRun, SourceT]:
    """Begin a block Lanczos run and take its first steps; return it, and the source that it multiplies with.

    That is ``source`` itself, or a copy of another scale. ``scale_exponent`` comes from a sample of the entries: where
    a larger one among the others would make products overflow, the run does not start, and the exponent then follows
    from the Frobenius norm, which the first pass has seen.

    Raises
    ------
    ValueError
        W has non-finite entries, or its squared Frobenius norm is no float64.
    """
    run = source.start(width, seed, stream, precise=precise, energies=energies, parts=parts)
    run.advance(steps)
    squared_norm, nonfinite, row, col = run.stats
    raise_if_nonfinite("W", nonfinite, (row, col))
    if run.steps > 0:
        return run, source
    if not math.isfinite(squared_norm):
        raise InvalidValueError("", "the squares of the entries of W leave the range of float64", "scale W")
    rescaled = copy.copy(source)
    rescaled.scale_exponent += math.frexp(math.sqrt(squared_norm))[1]
    run = rescaled.start(width, seed, stream, precise=precise, energies=energies, parts=parts)
    run.advance(steps)
    return run, rescaled


@contextmanager
def gram_memory(shape: tuple[int, int]) -> Iterator[None]:
    """Say what was too large: whoever runs out of memory here was about to build the Gram matrix of the short side."""
    try:
        yield
    except MemoryError as error:
        p = min(shape)
        raise OutOfMemoryError(
            "W",
            f"needs a Gram matrix of {p} x {p}, {8 * p * p} bytes, which is more than can be had ({error})",
            "method='lanczos', or fewer singular triplets, need none",
        ) from error
