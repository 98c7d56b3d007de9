"""Leading singular triplets of a spectrum under way, accurate enough to be taken away from energies."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.operators import Source
from mpfast.spectra.session import Session

Array = NDArray[np.float64]

__all__ = ["Leading", "leading_of_gram", "leading_of_session"]

# Largest residual of a Ritz pair, relative to its Ritz value (scale s^2), whose vector counts as a singular vector.
STANDS = 0.02


class Leading(NamedTuple):
    """Some singular triplets: squares of the values, (count,), and of the vectors' entries, (count, m), (count, n).

    Those of the values are in units of ``4**scale_exponent``, as the energies of the source are.
    """

    energies: Array
    left: Array
    right: Array

    @property
    def spread(self) -> Array:
        """How many rows or columns share each of them, the fewer of both: 1 / sum u^4 and 1 / sum v^4; (count,)."""
        shared: Array = 1 / np.maximum((self.left**2).sum(axis=1), (self.right**2).sum(axis=1))
        return shared

    def where(self, chosen: NDArray[np.bool_]) -> Leading:
        """Some of the triplets."""
        return Leading(self.energies[chosen], self.left[chosen], self.right[chosen])


def leading_of_gram(source: Source, count: int, threads: int) -> Leading:
    """The largest ``count`` triplets, by eigenvectors of the Gram matrix."""
    vectors = (
        _core.largest_eigenvectors(source.gram(), count, threads)[1] if count else np.zeros((0, min(source.shape)))
    )
    return _triplets(source, vectors[::-1])


def leading_of_session(session: Session, floor: float, limit: int) -> Leading:
    """The same from the run that has found most of them; those that stand."""
    source = session.source
    best, chosen = session.parts[0], np.zeros(0, dtype=bool)
    for run, part in session.parts:
        theta, residual, _ = (values[:limit] for values in run.ritz(part=part))
        stands = (theta > _square(floor, source)) & (residual < STANDS * theta)
        if stands.sum() > chosen.sum():
            best, chosen = (run, part), stands
    if not chosen.any():
        return _triplets(source, np.zeros((0, min(source.shape))))
    count = int(np.flatnonzero(chosen)[-1]) + 1
    run, part = best
    return _triplets(source, run.ritz_vectors(count, part)[chosen[:count]])


def _square(floor: float, source: Source) -> float:
    return (floor * 2.0**-source.scale_exponent) ** 2


def _triplets(source: Source, short_side: NDArray[Any]) -> Leading:
    """From vectors of the short side: one product with W gives those of the long one and the values."""
    tall = source.shape[0] >= source.shape[1]
    vectors = np.ascontiguousarray(short_side)
    image = source.multiply(vectors, transpose=not tall) if len(vectors) else np.zeros((0, max(source.shape)))
    squares = np.asarray(image, dtype=np.float64) ** 2
    sizes = squares.sum(axis=1)
    long_squares, short_squares = squares / sizes[:, None], vectors.astype(np.float64) ** 2
    left, right = (long_squares, short_squares) if tall else (short_squares, long_squares)
    return Leading(sizes, left, right)
