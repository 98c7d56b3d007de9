"""Float8 and E2M1 with scales of blocks along the rows, also in the order in which tensor cores of NVIDIA take them.

These are padded to whole tiles of 128 rows and 4 columns. Tiles
follow each other along the rows; in one, the scale of row r and column c is at ``16 (r mod 32) + 4 (r div 32) + c``, as
cuBLAS describes for its block scaling factors.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import Decoder
from mpfast.checkpoints.quantised.blocks import Grid
from mpfast.checkpoints.quantised.codes import FLOAT8
from mpfast.checkpoints.quantised.group import Group, NotDecodedError, check_shape
from mpfast.checkpoints.quantised.parts import BlockScales, StoredCodes, TwoLevels, scale_numbers
from mpfast.checkpoints.quantised.scaled_codes import ScaledCodes, Scales

__all__ = ["block_scaled"]

_TILE_ROWS, _TILE_COLUMNS = 128, 4


class _TiledScales(BlockScales):
    """Scales in tiles: those of the matrices of a stack one below the other; the grid is without padding."""

    def read(self, matrix: int, rows: slice) -> NDArray[np.float32]:
        """Return the scales of a matrix by rows of blocks: (rows, columns of blocks)."""
        _, height, across = self.grid.shape
        first, last = (matrix * height + row for row in rows.indices(height)[:2])
        top, bottom = first // _TILE_ROWS, -(-last // _TILE_ROWS)
        tiles = self.group.read(self.word).reshape(-1, -(-across // _TILE_COLUMNS), 32, 4, _TILE_COLUMNS)[top:bottom]
        in_rows = tiles.transpose(0, 3, 2, 1, 4).reshape(len(tiles) * _TILE_ROWS, -1)
        chosen = in_rows[first - top * _TILE_ROWS : last - top * _TILE_ROWS, :across]
        return scale_numbers(chosen, self.group.parts[self.word].dtype)


def block_scaled(
    group: Group, scales: str, width: int, *, powers: bool, tiled: bool, last: str = "", high_first: bool = False
) -> Decoder:
    """Return the decoder of float8, or of E2M1 two in a byte, with a scale for each block of a row.

    Parameters
    ----------
    group
        What is stored: codes (N, K) or (E, N, K) of float8, or (..., K / 2) bytes.
    scales
        The part with the scales.
    width
        Numbers in a block.
    powers
        Whether the scales are exponents of powers of two; else they are float8 themselves.
    tiled
        Whether they are in the order of tensor cores.
    last
        The part with one float32 that all are multiplied by; empty where there is none.
    high_first
        Whether the first of two numbers is in the high nibble.

    Raises
    ------
    NotDecodedError
        A part is missing or does not fit.
    """
    codes = group.info
    packed = codes.dtype not in FLOAT8
    if packed and codes.dtype not in ("uint8", "int8"):
        raise NotDecodedError(f"{codes.name} is {codes.dtype}, where float8 or bytes are expected")
    shape = (*codes.shape[:-1], codes.shape[-1] * (2 if packed else 1))
    if len(shape) not in (2, 3) or math.prod(shape) == 0 or shape[-1] % width:
        raise NotDecodedError(f"has the shape {shape}, where rows in blocks of {width} are expected")
    grid = Grid((shape[0] if len(shape) == 3 else 1, shape[-2], shape[-1] // width), (1, width), f"1x{width}")
    _check_scales(group, scales, grid, shape, powers=powers, tiled=tiled)
    found: Scales = _TiledScales(group, scales, grid) if tiled else BlockScales(group, scales, grid)
    if last:
        info = check_shape(group, last, (), (1,))
        if info.dtype != "float32":
            raise NotDecodedError(f"{info.name} is {info.dtype}, where float32 is expected")
        found = TwoLevels(found, group, last)
    return ScaledCodes(
        shape,
        _label(codes.dtype, width, powers=powers),
        # A few digits times a power of two: bfloat16 holds eight, down to 2^-133.
        "bfloat16" if powers else "float32",
        codes.dtype if not packed else "float4_e2m1, high bits first" if high_first else "float4_e2m1",
        StoredCodes(group, group.codes, codes.shape),
        found,
        largest_is_exact=packed and not powers,
    )


def _check_scales(group: Group, word: str, grid: Grid, shape: tuple[int, ...], *, powers: bool, tiled: bool) -> None:
    matrices, height, across = grid.shape
    if not tiled:
        check_shape(group, word, (*shape[:-1], across))
    elif matrices > 1 and height % _TILE_ROWS:
        raise NotDecodedError(f"has matrices of {height} rows, and how tiles of 128 are padded in a stack is not known")
    elif word in group.parts:
        tiles = -(-matrices * height // _TILE_ROWS), -(-across // _TILE_COLUMNS)
        expected = tiles[0] * _TILE_ROWS * tiles[1] * _TILE_COLUMNS
        if group.parts[word].size != expected:
            fact = f"has {group.parts[word].size} scales in tiles, where {expected} are expected for {shape}"
            raise NotDecodedError(f"{group.parts[word].name} {fact}")
    else:
        raise NotDecodedError(f"has no {word}, and is never cast without one")
    types = ("float8_e8m0fnu", "uint8") if powers else ("float8_e4m3fn",)
    info = group.parts[word]
    if info.dtype not in types:
        raise NotDecodedError(f"{info.name} is {info.dtype}, where {' or '.join(types)} is expected")


def _label(dtype: str, width: int, *, powers: bool) -> str:
    """Say in a few words how a matrix is stored."""
    if dtype not in FLOAT8:
        usual = ("mxfp4", 32) if powers else ("nvfp4", 16)
        return usual[0] if width == usual[1] else f"fp4 1x{width}"
    kind = "fp8" if dtype == "float8_e4m3fn" else f"fp8 {dtype.removeprefix('float8_')}"
    return f"mx{kind}" if powers and width == 32 else f"{kind} 1x{width}"
