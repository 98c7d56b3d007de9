"""The smallest entries of each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import raise_if_nonfinite
from mpfast.masks.allocation import row_counts
from mpfast.masks.cuda import DeviceLayer, prune_on_device
from mpfast.masks.weights import HostLayer
from mpfast.support import InvalidValueError, floor_count

__all__ = ["prune_by_row", "prune_rows"]


def prune_rows(
    bits: NDArray[Any], dtype: str, keep: NDArray[np.bool_], counts: NDArray[np.int64], threads: int
) -> tuple[int, int] | None:
    """Prune the smallest entries of each row of a matrix, so many of each.

    Parameters
    ----------
    bits
        (rows, columns), C order; bfloat16 as uint16.
    dtype
        Element type.
    keep
        Where the mask goes, of the same shape and order.
    counts
        How many entries go of each row.
    threads
        Number of threads; the result does not depend on it.

    Returns
    -------
    (int, int) or None
        How many entries of a row are not finite, and the place of the first in the matrix, flat.
    """
    lengths = [bits.shape[1]] * len(bits)
    return _prune_parts(bits.reshape(-1), dtype, keep.reshape(-1), lengths, counts, threads)


def prune_by_row(layer: HostLayer | DeviceLayer, sparsity: float, threads: int) -> None:
    """Prune floor(sparsity N) entries of an array, the smallest of each of its rows, (out, ...)."""
    if isinstance(layer, DeviceLayer):
        _prune_on_device(layer, sparsity)
        return
    bits, lengths, gone = layer.row_parts()
    counts = row_counts(floor_count(sparsity, layer.size), len(lengths)) - gone
    if counts.min() < 0:
        row = int(counts.argmin())
        raise InvalidValueError(
            "", f"{gone[row]} entries of row {row} are pruned already, more than sparsity={sparsity!r} asks for"
        )
    found = _prune_parts(bits, layer.dtype, layer.keep.reshape(-1), lengths, counts, threads)
    if found is not None:
        raise_if_nonfinite(layer.name, found[0], layer.locate(0, found[1]))


def _prune_on_device(layer: DeviceLayer, sparsity: float) -> None:
    """One launch for each row: for few rows, or to compare with."""
    rows = layer.weight.reshape(layer.shape[0] if len(layer.shape) > 1 else 1, -1)
    kept = layer.keep.reshape(rows.shape)
    for number, count in enumerate(row_counts(floor_count(sparsity, layer.size), len(rows))):
        row = DeviceLayer(rows[number : number + 1], layer.name)
        found = prune_on_device([row], [1.0], int(count))
        if found is not None:
            raise_if_nonfinite(layer.name, found[1], layer.locate(number * int(rows.shape[1]) + found[2][1]))
        kept[number : number + 1] = row.keep


def _prune_parts(
    bits: NDArray[Any],
    dtype: str,
    keep: NDArray[np.bool_],
    lengths: Sequence[int],
    counts: NDArray[np.int64],
    threads: int,
) -> tuple[int, int] | None:
    """Prune the smallest entries of parts of a flat array, so many of each."""
    at = 0
    for length, count in zip(lengths, counts, strict=True):
        if length:
            part = slice(at, at + length)
            matrix = _core.Matrix(bits[None, part], dtype)
            found = _core.prune_smallest([matrix], [1.0], [keep[None, part]], int(count), threads)
            if found is not None:
                return found[1], at + found[2]
        at += length
    return None
