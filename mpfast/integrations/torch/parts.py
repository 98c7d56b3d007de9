"""Contiguous parts of data that comes in bit by bit, nobody knows how much of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mpfast.checkpoints import InputSum

__all__ = ["cut_into_parts"]


def cut_into_parts(found: InputSum[Any], rows: int, folds: int) -> Iterator[slice]:
    """Yield the slices of the next `rows` rows that belong to one part each, after opening that part as the last one.

    A part is full when it has as many rows as the largest. For a new one, where there are `folds` already, the two
    neighbours become one that have the fewest rows together. The first parts share the rows that come first equally.
    """
    at = 0
    while at < rows:
        full = max(found.rows, default=-(-rows // folds))
        if folds == 1:
            full = sum(found.rows) + rows
        if not found.rows or found.rows[-1] >= full:
            if len(found.rows) == folds:
                _join_smallest_neighbours(found)
                full = max(found.rows)
            found.rows.append(0)
            found.parts.append(None)
        size = min(rows - at, full - found.rows[-1])
        yield slice(at, at + size)
        found.rows[-1] += size
        at += size


def _join_smallest_neighbours(found: InputSum[Any]) -> None:
    pairs = [found.rows[i] + found.rows[i + 1] for i in range(len(found.rows) - 1)]
    first = pairs.index(min(pairs))
    found.rows[first] += found.rows.pop(first + 1)
    found.parts[first] += found.parts.pop(first + 1)
