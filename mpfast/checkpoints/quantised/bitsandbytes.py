"""bitsandbytes: NF4 and FP4, flat blocks of four-bit codes of a table that the file holds; and int8 by rows.

Of four bits: ``W[i] = quant_map[code[i]] * absmax[i // blocksize]`` over all entries row after row, two in a byte with
the high nibble first. ``absmax`` may be quantised itself: ``nested_quant_map[absmax[b]] * nested_absmax[b //
nested_blocksize] + nested_offset``. Of eight bits: ``W[n, k] = code[n, k] * SCB[n] / 127``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import Decoder
from mpfast.checkpoints.quantised.affine import Affine
from mpfast.checkpoints.quantised.affine_parts import StoredIntegers, check_type, runs
from mpfast.checkpoints.quantised.codes import pairs, rounding_of
from mpfast.checkpoints.quantised.group import Group, NotDecodedError, as_float32, check_shape
from mpfast.support import parse_json, short

__all__ = ["METHODS", "four_bits", "int8", "is_four_bits", "is_int8"]

#: What configurations call the method that stores weights so.
METHODS = frozenset({"bitsandbytes"})
_TYPES = ("nf4", "fp4")
_STATE = "quant_state.bitsandbytes__"
# An object of a few settings.
_STATE_BYTES = 4096
_NESTED = ("nested_absmax", "nested_quant_map")


def is_four_bits(group: Group) -> bool:
    """Whether there are the parts of NF4 or FP4, or bytes that this method can only have written as such."""
    return group.info.dtype == "uint8" and (bool(group.method) or group.has(_prefix(group) + "absmax"))


def is_int8(group: Group) -> bool:
    """Whether there are bytes with a maximum for every row."""
    return group.info.dtype == "int8" and (bool(group.method) or group.has("SCB"))


def int8(group: Group) -> Decoder:
    """Return the decoder; NotDecodedError where the maxima are missing or do not fit."""
    group.only("weight", "SCB")
    shape = group.info.shape
    if len(shape) != 2 or 0 in shape:
        raise NotDecodedError(f"has the shape {shape}, where (outputs, inputs) is expected")
    check_type(group, "SCB", "float32")
    check_shape(group, "SCB", (shape[0],))
    # Rows one after the other; older versions could also leave the order of a tensor core.
    if group.has("weight_format") and (group.parts["weight_format"].size > 1 or group.read("weight_format").any()):
        raise NotDecodedError(f"has {group.parts['weight_format'].name}, which says that it is not stored by rows")
    return Affine(shape, "int8 by row", StoredIntegers(group, "weight"), _RowMaxima(group, shape[1]))


@dataclass(frozen=True)
class _RowMaxima:
    """Steps of the rows: what the code 127 stands for, over 127."""

    group: Group
    columns: int

    @property
    def block(self) -> tuple[int, int]:
        return 1, self.columns

    def read(self, matrix: int, rows: slice) -> NDArray[np.float32]:
        return as_float32(self.group, "SCB", rows)[:, None] / np.float32(127)


@dataclass(frozen=True)
class FlatBlocks:
    """A `mpfast.arrays.Decoder`: codes of a table in blocks that run on from row to row.

    Attributes
    ----------
    shape, stored
        As in `Decoder`.
    group : Group
        The parts.
    block : int
        Entries of a block.
    nested : (int, float) or None
        Of quantised maxima: how many have one, and what is added to them.
    """

    shape: tuple[int, ...]
    stored: str
    group: Group
    block: int
    nested: tuple[int, float] | None
    dtype: str = "float32"

    def rows(self, matrix: int, rows: slice) -> NDArray[np.float32]:
        """Return some rows in float32."""
        table, columns = self._table(), self.shape[-1]
        found = [self._decoded(table, *ends, 1) for ends in runs(self.shape, matrix, rows)]
        return np.concatenate([np.empty(0, np.float32), *found]).reshape(-1, columns)

    def rounding(self, matrix: int, rows: slice) -> float | None:
        """Return the mean variance of rounding to the table, by the codes that occur, the largest of a block aside."""
        table = self._table()
        variances = rounding_of(table)
        outermost = np.where(np.abs(table) == np.abs(table).max(), variances, 0)
        total, count = 0.0, 0
        for first, last in runs(self.shape, matrix, rows):
            found = self._decoded(variances, first, last, 2)
            of_largest = self._decoded(outermost, first, last, 2)
            begins = np.arange(first // self.block, -(-last // self.block)) * self.block - first
            total += float(found.sum(dtype=np.float64))
            total -= float(np.maximum.reduceat(of_largest, np.maximum(begins, 0)).sum(dtype=np.float64))
            count += found.size
        return total / count if count else None

    def _table(self) -> NDArray[np.float32]:
        return as_float32(self.group, _prefix(self.group) + "quant_map")

    def _decoded(self, table: NDArray[np.float32], first: int, last: int, power: int) -> NDArray[np.float32]:
        """The values of a table by the codes of some entries, times a power of the maxima."""
        codes = self.group.read(self.group.codes).reshape(-1)[first // 2 : -(-last // 2)]
        numbers: NDArray[np.float32] = np.take(pairs(table, high_first=True), codes, axis=0).reshape(-1)
        numbers = numbers[first % 2 :][: last - first]
        with np.errstate(all="ignore"):  # the maxima may be anything: whoever uses the numbers says so
            maxima = self._maxima(slice(first // self.block, -(-last // self.block))) ** power
            numbers *= maxima.repeat(self.block)[first % self.block :][: last - first]
        return numbers

    def _maxima(self, blocks: slice) -> NDArray[np.float32]:
        prefix = _prefix(self.group)
        if self.nested is None:
            return as_float32(self.group, prefix + "absmax", blocks)
        size, offset = self.nested
        codes = self.group.read(prefix + "absmax")[blocks]
        maxima = as_float32(self.group, prefix + "nested_absmax")[np.arange(blocks.start, blocks.stop) // size]
        values = as_float32(self.group, prefix + "nested_quant_map")
        found: NDArray[np.float32] = values[codes] * maxima + np.float32(offset)
        return found


def four_bits(group: Group) -> Decoder:
    """Return the decoder; NotDecodedError where a part is missing or does not fit."""
    prefix = _prefix(group)
    word = next((prefix + _STATE + kind for kind in _TYPES if group.has(prefix + _STATE + kind)), "")
    if not word:
        raise NotDecodedError("has no quant_state of nf4 or fp4 beside it, and is never cast without one")
    nested = any(group.has(prefix + part) for part in _NESTED)
    parts = ("absmax", "quant_map", *(_NESTED if nested else ()))
    group.only(group.codes, word, *(prefix + part for part in parts))
    state = _state(group, word)
    shape, block = state.get("shape"), _positive(state, "blocksize")
    if not isinstance(shape, list) or len(shape) not in (2, 3) or not all(_is_count(extent) for extent in shape):
        raise NotDecodedError(
            f"{group.parts[word].name} says the shape {short(shape)}, where 2 or 3 numbers are expected"
        )
    if state.get("quant_type") != word.removeprefix(prefix + _STATE):
        raise NotDecodedError(f"{group.parts[word].name} says the type {short(state.get('quant_type'))}")
    count = math.prod(shape)
    if group.info.size != -(-count // 2):
        raise NotDecodedError(f"has {group.info.size} bytes, where {shape} takes {-(-count // 2)}")
    blocks = -(-count // block)
    check_shape(group, prefix + "absmax", (blocks,))
    check_type(group, prefix + "absmax", "uint8" if nested else "float32")
    check_shape(group, prefix + "quant_map", (16,))
    check_type(group, prefix + "quant_map", "float32")
    return FlatBlocks(
        tuple(shape),
        f"{state['quant_type']} {block}",
        group,
        block,
        _nested(group, prefix, state, blocks) if nested else None,
    )


def _nested(group: Group, prefix: str, state: Mapping[str, Any], blocks: int) -> tuple[int, float]:
    """How many maxima have one themselves, and what is added."""
    size, offset = _positive(state, "nested_blocksize"), state.get("nested_offset")
    if type(offset) is not float or not math.isfinite(offset):
        raise NotDecodedError(f"has maxima that are quantised themselves, with nested_offset {short(offset)}")
    check_shape(group, prefix + "nested_absmax", (-(-blocks // size),))
    check_shape(group, prefix + "nested_quant_map", (256,))
    for part in _NESTED:
        check_type(group, prefix + part, "float32")
    return size, offset


def _prefix(group: Group) -> str:
    """What words of the parts begin with: they are called by the whole name of the weight."""
    return f"{group.codes}." if group.codes else ""


def _state(group: Group, word: str) -> Mapping[str, Any]:
    info = group.parts[word]
    if info.dtype != "uint8" or info.size > _STATE_BYTES:
        raise NotDecodedError(f"{info.name} is no text of at most {_STATE_BYTES} bytes")
    try:
        state = parse_json(group.read(word).tobytes().decode("utf-8"))
    except ValueError as error:
        raise NotDecodedError(f"{info.name} is no valid JSON: {error}") from None
    if not isinstance(state, Mapping):
        raise NotDecodedError(f"{info.name} is no object")
    return state


def _positive(state: Mapping[str, Any], key: str) -> int:
    value: Any = state.get(key)
    if not _is_count(value):
        raise NotDecodedError(f"says {key} {short(value)}, where a positive number is expected")
    return int(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0
