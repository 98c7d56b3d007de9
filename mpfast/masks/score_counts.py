"""How the scores of a layer's entries are distributed, small enough to keep for every layer of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["ScoreCounts", "cut_shares"]

Array = NDArray[np.float64]

# Bins are the leading 16 bits of float32 without the sign: the exponent and 7 bits, 0.8 % apart at most.
_BINS = 1 << 15
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class ScoreCounts:
    """Scores that are not negative, counted in bins that are 0.8 % apart.

    Attributes
    ----------
    counts : (32768,) array of int64
        Scores in each bin, by the leading bits of their float32.
    total : float
        Their sum.
    """

    counts: NDArray[np.int64]
    total: float

    @classmethod
    def of(cls, scores: ArrayLike) -> ScoreCounts:
        """Count an array of scores of any shape; what is above the largest float32 counts as that."""
        wide = np.asarray(scores, dtype=np.float64)
        bits = np.minimum(wide, _LARGEST).astype(np.float32).view(np.uint32).reshape(-1) >> 16
        return cls(np.bincount(bits, minlength=_BINS).astype(np.int64), float(wide.sum()))

    def __add__(self, other: ScoreCounts) -> ScoreCounts:
        return ScoreCounts(self.counts + other.counts, self.total + other.total)

    @property
    def size(self) -> int:
        """Number of scores."""
        return int(self.counts.sum())

    def share_above(self, level: float) -> float:
        """Share of the scores above a level: those in its bin are taken for evenly spread, below 2^-133 for zeros."""
        if not level < _LARGEST:
            return 0.0
        bits = int(np.float32(level).view(np.uint32))
        at, low, high = bits >> 16, *_ends(bits >> 16)
        inside = 0.0 if level == 0 else float(self.counts[at]) * (high - level) / (high - low)
        return (int(self.counts[at + 1 :].sum()) + inside) / self.size


def _ends(bin_: int) -> tuple[float, float]:
    """Where a bin begins and ends."""
    edges = np.array([bin_ << 16, (bin_ + 1) << 16], np.uint32).view(np.float32)
    return float(edges[0]), float(edges[1])


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
