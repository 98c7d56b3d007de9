"""How the scores of a layer's entries are distributed, small enough to keep for every layer of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["ScoreCounts", "cut_shares"]

Array = NDArray[np.float64]

# Bins are the leading bits of float64, the exponent and 7 bits: 0.8 % apart at most, from the smallest float32 to the
# largest. A bin more, the first, is for zeros and what is less, and the last for what is larger, too.
_DROPPED_BITS = 45
_SMALLEST, _LARGEST = 2.0**-149, float(np.finfo(np.float32).max)
_FROM, _UP_TO = (np.array([_SMALLEST, _LARGEST]).view(np.int64) >> _DROPPED_BITS).tolist()
_BINS = _UP_TO - _FROM + 2


@dataclass(frozen=True)
class ScoreCounts:
    """Scores that are not negative, counted in bins that are 0.8 % apart.

    Attributes
    ----------
    counts : (35457,) array of int64
        Scores in each bin: zeros, and those from 2^-149 on by their leading bits.
    total : float
        Their sum.
    """

    counts: NDArray[np.int64]
    total: float

    @classmethod
    def of(cls, scores: ArrayLike) -> ScoreCounts:
        """Count an array of scores of any shape; what is below the smallest float32, 2^-149, counts as zero."""
        wide = np.asarray(scores, dtype=np.float64).reshape(-1)
        return cls(np.bincount(_bins(wide), minlength=_BINS).astype(np.int64, copy=False), float(wide.sum()))

    def __add__(self, other: ScoreCounts) -> ScoreCounts:
        return ScoreCounts(self.counts + other.counts, self.total + other.total)

    @property
    def size(self) -> int:
        """Number of scores."""
        return int(self.counts.sum())

    def share_above(self, level: float) -> float:
        """Share of the scores above a level, those in its bin taken to be evenly spread."""
        if not level < _LARGEST:
            return 0.0
        (at,) = _bins(np.array([level], np.float64)).tolist()
        above = int(self.counts[at + 1 :].sum())
        if at == 0:
            return above / self.size
        low, high = _starts_of(at, at + 1)
        return (above + float(self.counts[at]) * (high - level) / (high - low)) / self.size


def _bins(scores: Array) -> NDArray[np.int64]:
    bins = scores.view(np.int64) >> _DROPPED_BITS
    bins -= _FROM - 1
    return np.clip(bins, 0, _BINS - 1, out=bins)


def _starts_of(*bins: int) -> list[float]:
    """Where bins begin, other than the first."""
    leading = np.array(bins, np.int64) + (_FROM - 1)
    starts: list[float] = (leading << _DROPPED_BITS).view(np.float64).tolist()
    return starts


def cut_shares(layers: Sequence[ScoreCounts], pruned: int, low: ArrayLike, high: ArrayLike) -> Array:
    """Share of each layer that goes if the smallest scores of all layers go together, within bounds.

    That has the smallest sum of scores of all ways to let `pruned` entries go, of squares of scores as well.

    Parameters
    ----------
    layers
        The scores of each.
    pruned
        How many entries go.
    low, high
        Smallest and largest share of a layer, one number or one for each.

    Returns
    -------
    (layers,) array
        Their sum, weighted by the sizes, is `pruned` as far as the bounds allow.

    Examples
    --------
    >>> cut_shares([ScoreCounts.of([1, 2, 3, 8]), ScoreCounts.of([4, 5, 6, 7])], 4, 0, 1).tolist()
    [0.75, 0.25]
    """
    sizes = np.array([layer.size for layer in layers], np.float64)
    below = np.cumsum([layer.counts for layer in layers], axis=1)
    fewest, most = sizes * np.asarray(low), sizes * np.asarray(high)

    def gone(level: int) -> Array:
        """Entries of each layer in the bins below the level."""
        counted = below[:, level - 1] if level else np.zeros(len(layers))
        return np.clip(counted, fewest, most)

    first, last = 0, _BINS
    while last - first > 1:
        middle = (first + last) // 2
        if gone(middle).sum() <= pruned:
            first = middle
        else:
            last = middle
    before, after = gone(first), gone(last)
    step = float(after.sum() - before.sum())
    part = min(max((pruned - float(before.sum())) / step, 0.0), 1.0) if step > 0 else 0.0
    shares: Array = (before + part * (after - before)) / sizes
    return shares
