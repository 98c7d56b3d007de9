"""Which block of a matrix each of its scales belongs to, from the shapes of both and what the configuration says."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from mpfast.checkpoints.quantised.group import Group, NotDecodedError

__all__ = ["Grid", "grid_of"]

# Sides of a block where the configuration of a method names none: of transformers' FineGrainedFP8Config.
_USUAL = {"fp8": 128}


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
    axis, a whole share of it, or a power of two, where only one of these makes as many.

    Raises
    ------
    NotDecodedError
        There is no such size, or several are possible.
    """
    info = group.parts[word]
    if math.prod(shape) == 0:
        raise NotDecodedError("is empty")
    if math.prod(info.shape) == 0:
        raise NotDecodedError(f"{info.name} is empty")
    found = _grid(info.shape, shape, tuple(_blocks_said(group)), group.method.lower())
    if found is None:
        raise NotDecodedError(f"{info.name} has the shape {info.shape}, which fits no blocks of {shape}")
    return found


@functools.lru_cache(maxsize=1 << 8)  # thousands of experts have the same few
def _grid(
    scales: tuple[int, ...], shape: tuple[int, ...], every: tuple[tuple[int, int], ...], method: str
) -> Grid | None:
    """The grid of scales of a shape, by the blocks and the method that the configuration says; None: not one fits."""
    rows, columns = shape[-2:]
    found = _by_matrices(scales, shape, said=bool(method))
    if found is None:
        return None
    if found[1:] == (1, 1) and (not every or len(scales) < len(shape)):
        return Grid(found, (rows, columns), "")
    fitting = {said for said in every if _fits(said, found[1:], (rows, columns))}
    usual = _USUAL.get(method)
    block = fitting.pop() if fitting else _block(found[1:], (rows, columns), every[0] if every else None, usual)
    if block is None or fitting:  # none, or another one, too
        return None
    described = {(1, columns): "by row", (rows, 1): "by column"}.get(block, f"{block[0]}x{block[1]}")
    return Grid(found, (min(block[0], rows), min(block[1], columns)), described)


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


def _blocks_said(group: Group) -> list[tuple[int, int]]:
    """Rows and columns of a block, as the configuration says: of all weights, or of each group of layers."""
    found = [group.settings.get("weight_block_size")]
    layers = group.settings.get("config_groups")
    for each in layers.values() if isinstance(layers, Mapping) else ():
        weights = each.get("weights") if isinstance(each, Mapping) else None
        found.append(weights.get("block_structure") if isinstance(weights, Mapping) else None)
    return [
        (said[0], said[1])
        for said in found
        if isinstance(said, list) and len(said) == 2 and all(type(side) is int and side > 0 for side in said)
    ]


def _fits(block: tuple[int, int], grid: tuple[int, int], sides: tuple[int, int]) -> bool:
    return all(count == -(-side // size) for count, side, size in zip(grid, sides, block, strict=True))


def _block(
    grid: tuple[int, int], sides: tuple[int, int], said: tuple[int, int] | None, usual: int | None
) -> tuple[int, int] | None:
    """Rows and columns of a block, of a grid of (R, C) on a matrix (N, K).

    ``said`` does not fit it; ``usual``, where it is given, is what sides are of when the configuration says nothing.
    """
    if said is not None and grid == (1, 1):
        return None
    possible = [_sides(count, side) for count, side in zip(grid, sides, strict=True)]
    for axis, other in ((0, 1), (1, 0)):
        if len(possible[axis]) < 2:
            continue
        if grid[other] > 1 and set(possible[other]) < set(possible[axis]):  # blocks are square where they can be
            possible[axis] = possible[other]
        elif said is None and usual is not None and usual in possible[axis]:
            possible[axis] = [usual]
    sizes = [each[0] if len(each) == 1 else None for each in possible]
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


def _sides(count: int, side: int) -> list[int]:
    """Lengths that the blocks of an axis may have: one entry, all of it, a whole share, or a power of two."""
    if count in (1, side):
        return [side // count]
    powers = [1 << power for power in range(1, side.bit_length()) if -(-side >> power) == count]
    whole = [side // count] if side % count == 0 else []
    return list(dict.fromkeys(whole + powers))
