"""What a truncation leaves out: the tail of a spectrum, and the rank at which it is small enough.

By Eckart and Young the best product of rank k misses ``sum over i > k of s_i^2`` of ``sum s_i^2``. Of a matrix that is
the square of the relative error in the Frobenius norm; of ``W C^(1/2)``, with C the second moment of the inputs, that
of the outputs of the layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mpfast.spectra.distribution import Measure
from mpfast.spectra.estimators import Sample
from mpfast.spectra.probe_noise import jackknife_error
from mpfast.support import InvalidValueError

__all__ = ["TruncationRank", "checked_error", "rank_for_error", "ranks_of"]

Array = NDArray[np.float64]

# Share of one that sums of masses may be off by.
_ROUNDING = 1e-6


class Truncatable(Sample, Protocol):
    """What the tail needs to know of a spectrum; see `mpfast.Spectrum`."""

    @property
    def replicates(self) -> tuple[Measure, ...]: ...
    @property
    def probes(self) -> int: ...
    @property
    def extra_error(self) -> float: ...


@dataclass(frozen=True)
class TruncationRank:
    """The least rank whose truncation leaves a relative error.

    Attributes
    ----------
    rank : int
        1 to ``min(m, n)``.
    rank_error : float
        One standard error of it; 0 where all singular values are known.
    error : float
        Relative error that is left at this rank, as measured.
    """

    rank: int
    rank_error: float
    error: float


def checked_error(error: Any) -> float:
    """Return a relative error as a float; InvalidValueError unless it lies in [0, 1)."""
    real = isinstance(error, (int, float, np.integer, np.floating)) and not isinstance(error, bool)
    if not real or not 0 <= error < 1:
        raise InvalidValueError("error", f"must be a number in [0, 1), not {error!r}")
    return float(error)


def rank_for_error(spectrum: Truncatable, error: float) -> TruncationRank:
    """Return the least rank that leaves a relative error, and what the probes say of its uncertainty."""
    p = min(spectrum.shape)
    (at,) = ranks_of(spectrum.measure, p, (error,))
    # A rank of p keeps all; beside a zero matrix nothing is less than another.
    rank = min(max(math.ceil(at - _ROUNDING), 1), p)
    ranks, tails = _tail(spectrum.measure, p)
    left = math.sqrt(max(float(np.interp(rank, ranks, tails)), 0.0) / tails[0]) if tails[0] > 0 else 0.0
    if spectrum.values is not None:
        return TruncationRank(rank, 0.0, left)
    if spectrum.probes == 1:
        return TruncationRank(rank, math.inf, left)
    others = [float(ranks_of(measure, p, (error,))[0]) for measure in spectrum.replicates]
    return TruncationRank(rank, math.hypot(jackknife_error(others), spectrum.extra_error * p), left)


def ranks_of(measure: Measure, p: int, errors: Sequence[float]) -> Array:
    """Return where the tail of a spectrum of p values falls to these relative errors; no whole numbers."""
    ranks, tails = _tail(measure, p)
    # Below rounding of the sum, values are zero.
    allowed = np.maximum(np.square(errors), p * np.finfo(np.float64).eps) * tails[0]
    found: Array = np.interp(allowed, tails[::-1], ranks[::-1])
    return found


def _tail(measure: Measure, p: int) -> tuple[Array, Array]:
    """How many values are kept, 0 to p, and the sum of the squares of the others; both at the ends of the nodes."""
    order = np.argsort(-measure.nodes, kind="stable")
    weights, nodes = measure.weights[order], measure.nodes[order]
    scale = float(nodes[0]) or 1.0
    kept = p * np.concatenate([[0.0], np.cumsum(weights)])
    # From the small ones up, so that little is not lost beside much.
    left = p * np.append(np.cumsum((weights * np.square(nodes / scale))[::-1])[::-1], 0.0)
    return kept, left
