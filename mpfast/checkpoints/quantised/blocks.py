"""Which block of a matrix each of its scales belongs to, from the shapes of both and what the configuration says."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mpfast.checkpoints.quantised.group import Group, NotDecodedError

__all__ = ["Grid", "grid_of"]


@dataclass(frozen=True)
class Grid:
    """Scales of the matrices of a stack by blocks.

    Attributes
    ----------
    shape : (E, R, C)
        Of the scales: of E matrices, or one for all where E is 1, by R rows and C columns of blocks.
    block : (int, int)
        Rows and columns of a block; the last ones may be cut off.
    described : str
        In a few words: ``"128x128"``, ``"by row"``; empty where there is one scale for a matrix.
    """

    shape: tuple[int, int, int]
    block: tuple[int, int]
    described: str


def grid_of(group: Group, word: str, shape: tuple[int, ...]) -> Grid:
    """Return the grid of the scales in a part, for a tensor of this shape, (N, K) or (E, N, K).

    Blocks of the size that the configuration says, where the scales are as many; else of a row, a column, all of an
    axis, or the one power of two of which there are as many.

    Raises
    ------
    NotDecodedError
        There is no such size, or several are possible.
    """
    info = group.parts[word]
    scales = info.shape
    rows, columns = shape[-2:]
    if math.prod(shape) == 0:
        raise NotDecodedError("is empty")
    found = _by_matrices(scales, shape, said=bool(group.method))
    if found is None:
        raise _misfit(group, word, shape)
    said = _block_said(group)
    if found[1:] == (1, 1) and (said is None or len(scales) < len(shape)):
        return Grid(found, (rows, columns), "")
    block = _block(found[1:], (rows, columns), said)
    if block is None:
        raise _misfit(group, word, shape)
    described = {(1, columns): "by row", (rows, 1): "by column"}.get(block, f"{block[0]}x{block[1]}")
    return Grid(found, (min(block[0], rows), min(block[1], columns)), described)


def _misfit(group: Group, word: str, shape: tuple[int, ...]) -> NotDecodedError:
    info = group.parts[word]
    return NotDecodedError(f"{info.name} has the shape {info.shape}, which fits no blocks of {shape}")


def _by_matrices(scales: tuple[int, ...], shape: tuple[int, ...], *, said: bool) -> tuple[int, int, int] | None:
    """The scales as (E, R, C); None where their axes are not those of the tensor.

    Parameters
    ----------
    scales, shape
        Of the part and of the tensor.
    said
        Whether the configuration speaks of quantisation: then one scale for each output is by its rows also where
        there are as many columns.
    """
    rows, columns = shape[-2:]
    if scales in ((), (1,)):
        return 1, 1, 1
    if len(scales) == len(shape):
        if len(shape) == 2:
            return 1, scales[0], scales[1]
        return (scales[0], scales[1], scales[2]) if scales[0] == shape[0] else None
    by_row = scales[-1] == rows and (said or rows != columns)
    if len(shape) == 2:
        return (1, rows, 1) if len(scales) == 1 and by_row else None
    if scales in ((shape[0],), (shape[0], 1)):
        return shape[0], 1, 1
    return (shape[0], rows, 1) if len(scales) == 2 and scales[0] == shape[0] and by_row else None


def _block_said(group: Group) -> tuple[int, int] | None:
    found = group.settings.get("weight_block_size")
    if isinstance(found, list) and len(found) == 2 and all(type(side) is int and side > 0 for side in found):
        return found[0], found[1]
    return None


def _block(grid: tuple[int, int], sides: tuple[int, int], said: tuple[int, int] | None) -> tuple[int, int] | None:
    """Rows and columns of a block, of a grid of (R, C) on a matrix (N, K)."""
    if said is not None and all(count == -(-side // size) for count, side, size in zip(grid, sides, said, strict=True)):
        return said
    if said is not None and grid == (1, 1):
        return None
    sizes = [_side(count, side) for count, side in zip(grid, sides, strict=True)]
    for axis, other in ((0, 1), (1, 0)):
        size = sizes[other]
        if size is not None and grid[axis] == 1 and 1 < grid[other] < sides[other]:
            # A side within one block, if blocks are square; or longer than any, and scales are missing.
            sizes[axis] = size if sides[axis] <= size else None
    height, width = sizes
    if height is None or width is None:
        return None
    # Of blocks that are cut off only square ones are taken: a grid that lacks scales fits some others.
    whole = sides[0] % height == 0 and sides[1] % width == 0
    return (height, width) if whole or (height == width and said is None) else None


def _side(count: int, side: int) -> int | None:
    """Length of the blocks of an axis: one entry, all of it, or a power of two."""
    if count in (1, side):
        return side // count
    for power in range(1, side.bit_length()):
        if -(-side >> power) == count:
            return 1 << power
    return None
