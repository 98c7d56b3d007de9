"""Codes and scales as the parts of a group hold them, read when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import widened
from mpfast.checkpoints.quantised.blocks import Grid
from mpfast.checkpoints.quantised.codes import FLOAT8, exponents
from mpfast.checkpoints.quantised.group import Group, NotDecodedError
from mpfast.checkpoints.quantised.scaled_codes import Scales

__all__ = ["BlockScales", "StoredCodes", "TwoLevels", "check_scale", "is_exponents", "scale_numbers"]

_EXPONENTS = ("float8_e8m0fnu", "uint8")
_SCALE_TYPES = frozenset({"float64", "float32", "float16", "bfloat16", *_EXPONENTS, *FLOAT8})


def is_exponents(group: Group, word: str) -> bool:
    """Whether the scales of a part are stored as the exponents of powers of two: in E8M0, or its bytes."""
    return group.parts[word].dtype in _EXPONENTS


def check_scale(group: Group, word: str) -> None:
    """Raise NotDecodedError where a part is of a type that scales do not have."""
    info = group.parts[word]
    if info.dtype not in _SCALE_TYPES:
        raise NotDecodedError(f"{info.name} is {info.dtype}, which scales are not")


def scale_numbers(bits: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Return scales in float32, exponents as the powers of two that they stand for."""
    if dtype in _EXPONENTS:
        return exponents(bits)
    if dtype in FLOAT8:
        return np.take(FLOAT8[dtype], bits)
    return np.asarray(widened(bits) if dtype == "bfloat16" else bits, np.float32)


@dataclass(frozen=True)
class StoredCodes:
    """Codes of a part.

    Attributes
    ----------
    group, word
        The part.
    shape : (N, bytes) or (E, N, bytes)
        Of its bytes.
    """

    group: Group
    word: str
    shape: tuple[int, ...]

    def read(self, matrix: int, rows: slice) -> NDArray[np.uint8]:
        """Return those of some rows of a matrix: (rows, bytes)."""
        stored = self.group.read(self.word).view(np.uint8)
        chosen: NDArray[np.uint8] = stored.reshape(-1, *self.shape[-2:])[matrix, rows]
        return chosen


@dataclass(frozen=True)
class BlockScales:
    """Scales of a part, one for each block of a grid.

    Attributes
    ----------
    group, word
        The part.
    grid : Grid
        Of its scales.
    kind : str
        Their type where that of the part is none of scales; empty: that of the part.
    """

    group: Group
    word: str
    grid: Grid
    kind: str = ""

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of a block."""
        return self.grid.block

    def read(self, matrix: int, rows: slice) -> NDArray[np.float32]:
        """Return the scales of a matrix by rows of blocks: (rows, columns of blocks)."""
        shape = self.grid.shape
        stored = self.group.read(self.word).reshape(shape)
        kind = self.kind or self.group.parts[self.word].dtype
        return scale_numbers(stored[matrix if shape[0] > 1 else 0, rows], kind)


@dataclass(frozen=True)
class TwoLevels:
    """Scales of blocks under one for each matrix, or one for all.

    Attributes
    ----------
    blocks : Scales
        Of the blocks.
    group, word
        The part with those on top.
    divisor : bool
        Whether these divide; else they multiply.
    """

    blocks: Scales
    group: Group
    word: str
    divisor: bool = False

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of a block."""
        return self.blocks.block

    def read(self, matrix: int, rows: slice) -> NDArray[np.float32]:
        """Return the scales of a matrix by rows of blocks: (rows, columns of blocks)."""
        on_top = scale_numbers(self.group.read(self.word), self.group.parts[self.word].dtype).reshape(-1)
        factor = on_top[matrix if len(on_top) > 1 else 0]
        scales = self.blocks.read(matrix, rows)
        with np.errstate(all="ignore"):  # the scales may be anything: whoever uses the numbers says so
            found: NDArray[np.float32] = scales / factor if self.divisor else scales * factor
        return found
