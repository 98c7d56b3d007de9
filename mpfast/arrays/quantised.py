"""Quantised tensors that are read as numbers: whole, in parts, or panel by panel, and only when somebody asks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays.bfloat16 import narrowed

__all__ = ["CORE_CODES", "PANEL_BYTES", "CodeDecoder", "CodedRows", "Decoder", "QuantisedArray"]

#: Types of codes that the core multiplies with as they are stored.
CORE_CODES = frozenset(_core.code_names())

#: What one panel may take in float32: small enough for a cache, large enough for NumPy's calls not to matter.
PANEL_BYTES = 1 << 22
#: Of how many entries the variance of the rounding is taken: as many as its share of a noise needs.
SAMPLED = 1 << 20


class Decoder(Protocol):
    """How the numbers of one quantised tensor come out of its parts. Nothing is read before a method is called.

    Attributes
    ----------
    shape : (N, K) or (E, N, K)
        Of the tensor that the parts stand for.
    stored : str
        How it is stored, in a few words: ``"fp8 128x128"``, ``"int4 g128"``.
    dtype : {"float32", "bfloat16"}
        A type that holds every number of it exactly as `rows` gives it.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, K) or (E, N, K)."""

    @property
    def stored(self) -> str:
        """In a few words."""

    @property
    def dtype(self) -> str:
        """Name of the type."""

    def rows(self, matrix: int, rows: slice) -> NDArray[np.float32]:
        """Return rows of one matrix of the stack, 0 where there is one alone: (rows, K), a new array.

        ``rows`` has a start, a stop and a positive step, within (0, N).
        """

    def rounding(self, matrix: int, rows: slice) -> float | None:
        """Return the mean variance of the rounding of these entries, ``mean(step^2) / 12`` of a uniform grid.

        None where it is not defined.
        """


@dataclass(frozen=True, eq=False)
class CodedRows:
    """Rows of one matrix as they are stored: floating-point codes under scales.

    Attributes
    ----------
    code : str
        Type of the codes, one of `CORE_CODES`.
    codes : (rows, bytes) array of uint8
        Those of a row one behind the other; of four bits two in a byte, the low ones first.
    scales : (rows, blocks) array of float32
        Of the blocks of every row.
    width : int
        Entries of a block; the last one of a row may be narrower.
    """

    code: str
    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    width: int

    def matrix(self, dtype: str) -> _core.Matrix:
        """Return them for the core: entries are the values of the codes times their scales, rounded to float32.

        ``dtype`` is as of `Decoder`.
        """
        return _core.Matrix.of_codes(self.code, self.codes, self.scales, self.width, dtype)


@runtime_checkable
class CodeDecoder(Decoder, Protocol):
    """A decoder of numbers that the core may multiply with as they are stored."""

    def coded(self, matrix: int, rows: slice) -> CodedRows | None:
        """Return what is stored of rows, as of `rows`; None where they have to be decoded first."""


class QuantisedArray:
    """A quantised tensor, or a part of one along its matrices and rows, as an array that is decoded when it is read.

    Parameters
    ----------
    decoder : Decoder
        What the numbers come from.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        stacked = len(decoder.shape) == 3
        self._matrices = range(decoder.shape[0] if stacked else 1)
        self._rows = range(decoder.shape[-2])
        self._joined = not stacked  # a single matrix, or several one below the other

    @property
    def _stacked(self) -> bool:
        return len(self._matrices) > 1

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, K) or (E, N, K)."""
        rows, columns = len(self._rows), self._decoder.shape[-1]
        if self._joined:
            return len(self._matrices) * rows, columns
        return len(self._matrices), rows, columns

    @property
    def ndim(self) -> int:
        """2 or 3."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def stored(self) -> str:
        """How it is stored, in a few words."""
        return self._decoder.stored

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"QuantisedArray({self.stored!r}, shape={self.shape})"

    def __getitem__(self, index: Any) -> Any:
        """Return a part: as such of whole matrices and of rows of each, else decoded."""
        parts = index if isinstance(index, tuple) else (index,)
        part = self._copy()
        if not self._joined:
            first, parts = (parts[0], parts[1:]) if parts else (slice(None), parts)
            if isinstance(first, int):
                part._matrices, part._joined = self._matrices[first : first + 1 or None], True
            elif isinstance(first, slice):
                part._matrices = self._matrices[first]
            else:
                return self._numbers()[index]
        if parts and isinstance(parts[0], slice) and (parts[0].step or 1) > 0 and not (self._joined and self._stacked):
            part._rows, parts = self._rows[parts[0]], parts[1:]
        whole = all(isinstance(each, slice) and each == slice(None) for each in parts)
        return part if whole and len(part._matrices) > 0 else self._numbers()[index]

    def reshape(self, *shape: Any) -> Any:
        """Return the matrices one below the other where that is asked for; another shape of the decoded numbers."""
        wanted = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
        if wanted == self.shape:
            return self
        if wanted == (len(self._matrices) * len(self._rows), self.shape[-1]):
            part = self._copy()
            part._joined = True
            return part
        return self._numbers().reshape(wanted)

    def panels(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yield where rows go, the matrices one below the other, and the rows: at most `PANEL_BYTES`."""
        height = max(1, PANEL_BYTES // (4 * max(1, self.shape[-1])))
        place = 0
        for matrix in self._matrices:
            for first in range(0, len(self._rows), height):
                chosen = self._rows[first : first + height]
                numbers = self._decoder.rows(matrix, _as_slice(chosen))
                yield slice(place, place + len(chosen)), numbers
                place += len(chosen)

    def decoded_panels(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Yield as `panels` does, in the type that `decoded` has."""
        narrow = self._decoder.dtype == "bfloat16"
        for place, numbers in self.panels():
            yield place, narrowed(numbers) if narrow else numbers

    def decoded(self) -> tuple[NDArray[Any], str]:
        """Return the numbers and the name of their type: float32, or the bits of bfloat16 where that holds them."""
        kind = np.uint16 if self._decoder.dtype == "bfloat16" else np.float32
        out = np.empty((len(self._matrices) * len(self._rows), self.shape[-1]), kind)
        for place, numbers in self.decoded_panels():
            out[place] = numbers
        return out.reshape(self.shape), self._decoder.dtype

    def coded(self) -> _core.Matrix | None:
        """Return one matrix for the core as it is stored; None of a stack, and where it has to be decoded first."""
        if self.ndim != 2 or self._stacked or not isinstance(self._decoder, CodeDecoder):
            return None
        found = self._decoder.coded(self._matrices[0], _as_slice(self._rows))
        return None if found is None else found.matrix(self._decoder.dtype)

    def rounding(self) -> float | None:
        """Mean variance of the rounding of an entry to the grid of the format; None where it is not defined.

        Of large arrays it is that of some rows at even distances, of `SAMPLED` entries in all.
        """
        rows = self._rows[:: max(1, self.size // SAMPLED)]
        found = [self._decoder.rounding(matrix, _as_slice(rows)) for matrix in self._matrices]
        known = [value for value in found if value is not None]
        return float(np.mean(known)) if known and len(known) == len(found) else None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        numbers = self._numbers()
        return numbers if dtype is None else numbers.astype(dtype, copy=False)

    def _numbers(self) -> NDArray[np.float32]:
        out = np.empty((len(self._matrices) * len(self._rows), self.shape[-1]), np.float32)
        for place, numbers in self.panels():
            out[place] = numbers
        return out.reshape(self.shape)

    def _copy(self) -> QuantisedArray:
        part = QuantisedArray(self._decoder)
        part._matrices, part._rows, part._joined = self._matrices, self._rows, self._joined
        return part


def _as_slice(rows: range) -> slice:
    # The end of a range may lie beyond its last row by up to a step.
    return slice(rows.start, rows[-1] + 1 if rows else rows.start, rows.step)
