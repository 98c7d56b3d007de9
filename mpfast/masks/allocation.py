"""Sharing a sparsity out over layers: exact to the entry, within floors and ceilings, equal within groups."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpfast.support import InvalidValueError, check_sparsity, floor_count, front_door

__all__ = ["allocate", "floor_count", "gaussian_shares", "linear_map", "mapped_shares", "row_counts", "spread"]

Array = NDArray[np.float64]

_erf = np.vectorize(math.erf, otypes=[np.float64])


@front_door
def allocate(
    wishes: ArrayLike,
    sizes: Sequence[int],
    pruned: int,
    *,
    floors: ArrayLike = 0.0,
    ceilings: ArrayLike = 1.0,
    groups: Sequence[object] | None = None,
) -> list[int]:
    """Entries to prune in each layer: ``pruned`` in all, the sparsities as far from each other as the wishes are.

    One number is added to all wishes, each is clamped to its floor and ceiling, and what rounding leaves goes to the
    layers with the largest remainders.

    Parameters
    ----------
    wishes
        Wanted sparsity per layer; only the differences matter.
    sizes
        Entries per layer.
    pruned
        Entries to prune in all.
    floors, ceilings
        Smallest and largest sparsity, one number or one per layer.
    groups
        A key per layer: layers of equal key get one sparsity, that of their mean wish.

    Returns
    -------
    list of int
        Entries to prune per layer; their sum is ``pruned``.

    Raises
    ------
    ValueError
        Floors or ceilings leave no room for ``pruned``, or contradict each other.

    Examples
    --------
    >>> allocate([0.2, 0.4, 0.6], [100, 100, 100], 150)
    [30, 50, 70]
    >>> allocate([0.2, 0.4, 0.6], [100, 100, 100], 150, ceilings=0.6)
    [35, 55, 60]
    """
    count = np.asarray(sizes, dtype=np.float64)
    low = np.broadcast_to(np.asarray(floors, dtype=np.float64), count.shape).copy()
    high = np.broadcast_to(np.asarray(ceilings, dtype=np.float64), count.shape).copy()
    wish = np.asarray(wishes, dtype=np.float64).copy()
    if groups is not None:
        places: dict[object, list[int]] = {}
        for place, key in enumerate(groups):
            places.setdefault(key, []).append(place)
        for members in (found for found in places.values() if len(found) > 1):
            wish[members] = np.average(wish[members], weights=count[members])
            low[members] = low[members].max()
            high[members] = high[members].min()
    if not ((low >= 0) & (low <= high) & (high <= 1)).all():
        raise InvalidValueError(
            "", "floors and ceilings must satisfy 0 <= floor <= ceiling <= 1 in every layer and group"
        )
    # Whole entries: the smallest sparsity of at least the floor, the largest of at most the ceiling.
    fewest = np.ceil(low * count - 1e-9)
    most = np.floor(high * count + 1e-9)
    if not fewest.sum() <= pruned <= most.sum():
        raise InvalidValueError(
            "",
            f"the floors and ceilings allow {int(fewest.sum())} to {int(most.sum())} pruned entries of "
            f"{int(count.sum())}, not {pruned}",
        )
    wanted = np.clip(count * np.clip(wish + _shift(wish, count, low, high, pruned), low, high), fewest, most)
    return _rounded(wanted, fewest, most, pruned)


def _shift(wish: Array, count: Array, low: Array, high: Array, pruned: int) -> float:
    """What is added to all wishes so that the clamped sparsities prune ``pruned`` entries: bisection, to rounding."""
    below, above = float(np.min(low - wish)), float(np.max(high - wish))
    for _ in range(200):
        middle = 0.5 * (below + above)
        if float(count @ np.clip(wish + middle, low, high)) < pruned:
            below = middle
        else:
            above = middle
    return above


def _rounded(wanted: Array, fewest: Array, most: Array, pruned: int) -> list[int]:
    """Whole numbers with the sum ``pruned``, within the bounds, close to ``wanted``: by largest remainder."""
    whole = np.clip(np.floor(wanted), fewest, most)
    missing = pruned - int(whole.sum())
    while missing != 0:
        step = 1 if missing > 0 else -1
        free = whole < most if step > 0 else whole > fewest
        order = np.argsort(np.where(free, -step * (wanted - whole), np.inf), kind="stable")
        chosen = order[: min(abs(missing), int(free.sum()))]
        whole[chosen] += step
        missing -= step * len(chosen)
    return [int(value) for value in whole]


@front_door
def linear_map(
    signal: ArrayLike, sizes: Sequence[int], sparsity: float, *, epsilon: float = 0.3, floors: ArrayLike = 0.0
) -> list[float]:
    """Sparsities that rise linearly with a signal: AlphaPruning's rule, made exact.

    With Hill exponents as the signal, averaged over blocks, it is a reproduction of its paper and no way to keep more:
    against the same share of every layer, without training, it costs all-MiniLM-L6-v2 0.112 +- 0.011 of a mean
    reciprocal rank of 0.621 at 50 %, and SmolLM2-135M 0.090 +- 0.015 nats on prose at 30 %
    (``benchmarks/quality/budgets.py``).

    The signal is mapped to ``[1 - epsilon, 1 + epsilon]`` and scaled so that ``sparsity`` of all entries goes; where a
    layer would lose more than everything, the others take over.

    Parameters
    ----------
    signal
        One number per layer; in AlphaPruning the Hill exponent, large where training has left little structure.
    sizes
        Entries per layer.
    sparsity
        Share of all entries to prune.
    epsilon
        0: uniform; up to 1.
    floors
        Smallest sparsity, one number or one per layer: what is pruned already.

    Returns
    -------
    list of float
        Sparsity per layer, for `mpfast.masks.magnitude`; entry counts are whole and their sum is exact.

    References
    ----------
    Lu, Zhou, Liu, Wang, Mahoney, Yang, AlphaPruning (arXiv 2410.10912).

    Examples
    --------
    >>> [round(s, 3) for s in linear_map([2.0, 4.0, 6.0], [100, 100, 100], 0.5, epsilon=0.4)]
    [0.3, 0.5, 0.7]
    """
    sparsity = check_sparsity(sparsity)
    wishes = mapped_shares(signal, sizes, sparsity, epsilon=epsilon)
    total = int(np.sum(np.asarray(sizes, dtype=np.float64)))
    pruned = allocate(np.minimum(wishes, 1.0), sizes, floor_count(sparsity, total), floors=floors)
    return [gone / size for gone, size in zip(pruned, sizes, strict=True)]


def mapped_shares(signal: ArrayLike, sizes: Sequence[int], sparsity: float, *, epsilon: float = 0.3) -> Array:
    """Return the shares of `linear_map` before they are bounded and made exact: in the mean `sparsity`."""
    if not 0 <= epsilon <= 1:
        raise InvalidValueError("epsilon", f"must lie in [0, 1], not {epsilon!r}")
    values = np.asarray(signal, dtype=np.float64)
    if values.shape != (len(sizes),) or not np.isfinite(values).all():
        raise InvalidValueError("signal", "must have one finite number for each layer")
    count = np.asarray(sizes, dtype=np.float64)
    factor = 1 + spread(values, epsilon)
    shares: Array = factor * sparsity * count.sum() / (factor @ count)
    return shares


def spread(signal: ArrayLike, reach: float) -> Array:
    """Map numbers linearly to ``[-reach, reach]``; where they are all the same, to 0.

    Examples
    --------
    >>> spread([2.0, 4.0, 6.0], 0.1).tolist()
    [-0.1, 0.0, 0.1]
    """
    values = np.asarray(signal, dtype=np.float64)
    range_ = float(np.ptp(values))
    if not range_ > 0:
        return np.zeros(len(values))
    mapped: Array = reach * (2 * (values - values.min()) / range_ - 1)
    return mapped


def row_counts(pruned: int, rows: int) -> NDArray[np.int64]:
    """Entries that go of each row, `pruned` in all: as evenly as whole numbers allow.

    Examples
    --------
    >>> row_counts(10, 4).tolist()
    [2, 3, 2, 3]
    """
    counts: NDArray[np.int64] = np.diff([pruned * row // rows for row in range(rows + 1)])
    return counts


def gaussian_shares(deviations: ArrayLike, sizes: Sequence[int], sparsity: float) -> Array:
    """Share of each layer below one common magnitude, for normal entries of these standard deviations.

    What a global cut at ``sparsity`` would prune in each layer, foretold without reading a weight.

    Examples
    --------
    >>> gaussian_shares([1.0, 1.0], [10, 30], 0.5).round(6)
    array([0.5, 0.5])
    """
    spread = np.maximum(np.asarray(deviations, dtype=np.float64), np.finfo(np.float64).tiny)
    weight = np.asarray(sizes, dtype=np.float64) / float(np.sum(sizes))

    def share_below(level: float) -> Array:
        with np.errstate(over="ignore"):  # of a layer that is all zero
            shares: Array = _erf(level / (math.sqrt(2) * spread))
        return shares

    below, above = 0.0, 40.0 * float(spread.max())
    for _ in range(200):
        middle = 0.5 * (below + above)
        if float(weight @ share_below(middle)) < sparsity:
            below = middle
        else:
            above = middle
    return share_below(above)
