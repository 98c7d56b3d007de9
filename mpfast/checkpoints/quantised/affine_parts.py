"""Parts of uniformly quantised weights as `Affine` takes them: by rows of outputs, whichever way they are stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.checkpoints.base import TensorInfo
from mpfast.checkpoints.quantised.affine import Integers
from mpfast.checkpoints.quantised.bit_streams import unpacked
from mpfast.checkpoints.quantised.group import Group, NotDecodedError, as_float32, check_shape
from mpfast.checkpoints.quantised.scaled_codes import Scales
from mpfast.support import CheckpointError

__all__ = [
    "CodesOfZero",
    "Indexed",
    "ScalesAcross",
    "StoredIntegers",
    "Stream",
    "StreamAcross",
    "check_floats",
    "check_type",
    "outputs_of",
    "runs",
]

_FLOATS = ("float32", "float16", "bfloat16")


def check_type(group: Group, word: str, *types: str) -> TensorInfo:
    """Return a part; NotDecodedError where it is missing or of none of these types."""
    info = check_shape(group, word, *(group.parts[part].shape for part in (word,) if part in group.parts))
    if info.dtype not in types:
        raise NotDecodedError(f"{info.name} is {info.dtype}, where {' or '.join(types)} is expected")
    return info


def check_floats(group: Group, word: str, *shapes: tuple[int, ...]) -> TensorInfo:
    """Return a part of floating-point numbers; NotDecodedError where it is missing, or of another type or shape."""
    info = check_type(group, word, *_FLOATS)
    return check_shape(group, word, *(shapes or [info.shape]))


def outputs_of(group: Group, word: str) -> tuple[int, int]:
    """Return how many groups of inputs and how many outputs there are: the shape of scales (G, N).

    NotDecodedError where the part is missing, or no matrix of floating-point numbers.
    """
    shape = check_floats(group, word).shape
    if len(shape) != 2 or 0 in shape:
        raise NotDecodedError(f"has {word} of the shape {shape}, where (groups, outputs) is expected")
    return shape[0], shape[1]


def runs(shape: tuple[int, ...], matrix: int, rows: slice) -> Iterator[tuple[int, int]]:
    """Yield where rows begin and end among all entries of a tensor: those together that follow each other at once."""
    height, columns = shape[-2:]
    step = rows.step or 1
    height_of_run = 1 if step > 1 else rows.stop - rows.start
    for row in range(rows.start, rows.stop, max(step, height_of_run, 1)):
        first = (matrix * height + row) * columns
        yield first, first + height_of_run * columns


def _matrix_of(group: Group, word: str, matrix: int) -> NDArray[Any]:
    """One matrix of a part, of a stack or alone."""
    stored = group.read(word)
    one: NDArray[Any] = stored[matrix] if stored.ndim == 3 else stored
    return one


@dataclass(frozen=True)
class ScalesAcross:
    """Scales of neighbouring columns that are stored below each other: `Scales` of a part (G, N) or (E, G, N).

    Attributes
    ----------
    group, word
        The part.
    width : int
        Columns of a group.
    """

    group: Group
    word: str
    width: int

    @property
    def block(self) -> tuple[int, int]:
        """One row, as many columns."""
        return 1, self.width

    def read(self, matrix: int, rows: slice) -> NDArray[np.float32]:
        """Return the scales of some rows."""
        stacked = len(self.group.parts[self.word].shape) == 3
        return as_float32(self.group, self.word, (matrix, slice(None), rows) if stacked else (slice(None), rows)).T


@dataclass(frozen=True)
class StoredIntegers:
    """Codes as integers, one for each entry: (N, K) or (E, N, K)."""

    group: Group
    word: str

    def read(self, matrix: int, rows: slice) -> NDArray[Any]:
        """Return those of some rows."""
        codes: NDArray[Any] = _matrix_of(self.group, self.word, matrix)[rows]
        return codes


@dataclass(frozen=True)
class Stream:
    """Codes of a few bits that lie in words along each row.

    Attributes
    ----------
    group, word
        The part: (N, words) or (E, N, words), or (words, N) where it is transposed.
    bits : int
        Of a code.
    columns : int
        How many codes each row has.
    transposed : bool
        Whether the words of a row lie below each other.
    """

    group: Group
    word: str
    bits: int
    columns: int
    transposed: bool = False

    def read(self, matrix: int, rows: slice) -> NDArray[np.uint8]:
        """Return the codes of some rows: (rows, columns)."""
        words = _matrix_of(self.group, self.word, matrix)
        return unpacked(words[:, rows].T if self.transposed else words[rows], self.bits, slice(0, self.columns))


@dataclass(frozen=True)
class StreamAcross:
    """Codes of a few bits that lie in words along the rows: each word has those of one column.

    Attributes
    ----------
    group, word
        The part: (columns, words), or (words, columns) or a stack of that where it is transposed.
    bits : int
        Of a code.
    transposed : bool
        Whether the words of a column lie below each other.
    """

    group: Group
    word: str
    bits: int
    transposed: bool = False

    def read(self, matrix: int, rows: slice) -> NDArray[np.uint8]:
        """Return the codes of some rows: (rows, columns)."""
        words = _matrix_of(self.group, self.word, matrix)
        words = words.T if self.transposed else words
        # Every 32 codes begin with a word.
        first, last = rows.start // 32, -(-rows.stop // 32)
        within = slice(rows.start - first * 32, rows.stop - first * 32, rows.step)
        return unpacked(words[:, first * self.bits : last * self.bits], self.bits, within).T


@dataclass(frozen=True)
class CodesOfZero:
    """Zero points that are stored as codes: `Scales` of the blocks of a row.

    Attributes
    ----------
    codes : Integers
        (rows, G) of them.
    width : int
        Columns of a block.
    added : int
        What is added to each, and wraps around.
    bits : int
        Of a code.
    """

    codes: Integers
    width: int
    bits: int = 8
    added: int = 0

    @property
    def block(self) -> tuple[int, int]:
        """One row, as many columns."""
        return 1, self.width

    def read(self, matrix: int, rows: slice) -> NDArray[np.float32]:
        """Return the zero points of some rows."""
        codes = self.codes.read(matrix, rows)
        if self.added:
            codes = codes + self.added & (1 << self.bits) - 1
        return codes.astype(np.float32)


@dataclass(frozen=True)
class Indexed:
    """Values of groups of columns that a part says the group of: each its own block.

    Attributes
    ----------
    values : Scales
        Of every group.
    group, word
        The part: (K,) numbers of groups.
    count : int
        How many groups there are.
    """

    values: Scales
    group: Group
    word: str
    count: int

    @property
    def block(self) -> tuple[int, int]:
        """One entry."""
        return 1, 1

    def read(self, matrix: int, rows: slice) -> NDArray[np.float32]:
        """Return a value for every entry; CheckpointError where a column is of a group that is not there."""
        index = self.group.read(self.word)
        if index.size and not 0 <= index.min() <= index.max() < self.count:
            name = self.group.parts[self.word].name
            raise CheckpointError(
                f"{self.group.checkpoint.source}: {name} has groups from {index.min()} to {index.max()}, of which "
                f"there are {self.count}",
                tensor=name,
            )
        found: NDArray[np.float32] = self.values.read(matrix, rows)[:, index]
        return found
