"""The header of a GGUF file: read by itself, with every count and size checked before memory is taken for it.

A file is ``GGUF`` · version · number of tensors · number of settings · the settings · an entry per tensor · the data,
which begins at a multiple of ``general.alignment``. All is little-endian. The first dimension of a tensor is the
contiguous one: dimensions [K, N] are an array (N, K).

References
----------
The format's specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpfast.support import CheckpointError, short, storage_bits

__all__ = ["BLOCKS", "BlockType", "Entry", "Header", "read_header"]


@dataclass(frozen=True, slots=True)
class BlockType:
    """A type of tensors: its name, the entries of a block, the bytes of one, and what NumPy reads it as.

    Attributes
    ----------
    plain : str
        NumPy's type of an entry; empty where blocks are decoded.
    reported : str
        The element type by the names of `TensorInfo`.
    """

    name: str
    entries: int
    bytes: int
    plain: str = ""
    reported: str = "float32"


#: Every type of the format, by its number. Numbers that are not here were given up, or are newer than this list.
BLOCKS: Mapping[int, BlockType] = {
    0: BlockType("F32", 1, 4, "<f4", "float32"),
    1: BlockType("F16", 1, 2, "<f2", "float16"),
    2: BlockType("Q4_0", 32, 18),
    3: BlockType("Q4_1", 32, 20),
    6: BlockType("Q5_0", 32, 22),
    7: BlockType("Q5_1", 32, 24),
    8: BlockType("Q8_0", 32, 34),
    10: BlockType("Q2_K", 256, 84),
    11: BlockType("Q3_K", 256, 110),
    12: BlockType("Q4_K", 256, 144),
    13: BlockType("Q5_K", 256, 176),
    14: BlockType("Q6_K", 256, 210),
    16: BlockType("IQ2_XXS", 256, 66),
    17: BlockType("IQ2_XS", 256, 74),
    18: BlockType("IQ3_XXS", 256, 98),
    19: BlockType("IQ1_S", 256, 50),
    20: BlockType("IQ4_NL", 32, 18),
    21: BlockType("IQ3_S", 256, 110),
    22: BlockType("IQ2_S", 256, 82),
    23: BlockType("IQ4_XS", 256, 136),
    24: BlockType("I8", 1, 1, "i1", "int8"),
    25: BlockType("I16", 1, 2, "<i2", "int16"),
    26: BlockType("I32", 1, 4, "<i4", "int32"),
    27: BlockType("I64", 1, 8, "<i8", "int64"),
    28: BlockType("F64", 1, 8, "<f8", "float64"),
    29: BlockType("IQ1_M", 256, 56),
    30: BlockType("BF16", 1, 2, "<u2", "bfloat16"),
    34: BlockType("TQ1_0", 256, 54),
    35: BlockType("TQ2_0", 256, 66),
    39: BlockType("MXFP4", 32, 17),
    40: BlockType("NVFP4", 64, 36),
}

_VERSIONS = (2, 3)
# ggml's own limit; more would be no tensor of it.
_MOST_DIMENSIONS = 4
_LONGEST_NAME = 1 << 16
_DEEPEST_ARRAY = 4
# Formats of settings by the number of their type; 8 is a string, 9 an array.
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_SMALLEST_SETTING, _SMALLEST_ENTRY = 13, 24


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor whose entry has passed every check; `begin` and `end` are offsets in the file."""

    name: str
    shape: tuple[int, ...]
    type: BlockType
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """The settings that are numbers or short texts, and the tensors in the order of the file.

    Attributes
    ----------
    settings
    entries
    settings_end : int
        Where the settings end and the entries of the tensors begin.
    places : mapping of str to (int, int)
        Where the value of a setting stands, and the number of its type.
    alignment : int
        Of every tensor's data.
    """

    settings: Mapping[str, Any]
    entries: tuple[Entry, ...]
    settings_end: int
    places: Mapping[str, tuple[int, int]]
    alignment: int


def read_header(path: Path, content: Any) -> Header:
    """Read the header of a file whose bytes are given.

    Raises
    ------
    CheckpointError
        The file breaks the format in any way, or is of a version or byte order that is not read.
    """
    cursor = _Cursor(path, content)
    if cursor.take(4) != b"GGUF":
        raise CheckpointError(f"{path}: no GGUF file: it does not begin with GGUF", offset=0)
    version = cursor.number("<I")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
        what = "is big-endian" if swapped else f"is of version {version}"
        raise CheckpointError(f"{path}: {what}; GGUF is read in its versions 2 and 3, little-endian", offset=4)
    tensors = cursor.count("tensors", _SMALLEST_ENTRY)
    settings, places = _settings(cursor, cursor.count("settings", _SMALLEST_SETTING))
    settings_end = cursor.at
    found = [_raw_entry(cursor) for _ in range(tensors)]
    alignment = settings.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise CheckpointError(f"{path}: general.alignment is {short(alignment)}, which is no power of two")
    data = -(-cursor.at // alignment) * alignment
    entries = tuple(_checked(path, raw, data, alignment, len(content)) for raw in found)
    _check_apart(path, entries)
    return Header(settings, entries, settings_end, places, alignment)


class _Cursor:
    """Reads one value after the other and never past the end."""

    def __init__(self, path: Path, content: Any) -> None:
        self.path, self._content, self.at = path, content, 0

    def fail(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {what}; the file is truncated or damaged", offset=self.at)

    def require(self, length: int, what: str) -> None:
        left = len(self._content) - self.at
        if length > left:
            raise self.fail(f"{what} needs {length} bytes at byte {self.at}, {left} are left")

    def take(self, length: int) -> bytes:
        self.require(length, "the header")
        self.at += length
        return bytes(self._content[self.at - length : self.at])

    def skip(self, length: int) -> None:
        self.require(length, "a setting")
        self.at += length

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def count(self, what: str, smallest: int) -> int:
        """A number of things, each of which takes at least so many bytes."""
        count: int = self.number("<Q")
        self.require(count * smallest, f"a header of {count} {what}")
        return count

    def text(self, what: str) -> str:
        length: int = self.number("<Q")
        if length > _LONGEST_NAME:
            raise self.fail(f"{what} has {length} bytes")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} is no UTF-8") from None


def _settings(cursor: _Cursor, count: int) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    settings: dict[str, Any] = {}
    places: dict[str, tuple[int, int]] = {}
    for _ in range(count):
        key = cursor.text("the name of a setting")
        if key in settings:
            raise cursor.fail(f"setting {short(key)} occurs twice")
        kind = cursor.number("<I")
        places[key] = cursor.at, kind
        settings[key] = _value(cursor, kind, 0)
    return settings, places


def _value(cursor: _Cursor, kind: int, depth: int) -> Any:
    """The value of a setting; None of an array or a long text, which are passed over."""
    if kind in _SCALARS:
        return cursor.number(_SCALARS[kind])
    if kind == _STRING:
        length: int = cursor.number("<Q")
        if length > _LONGEST_NAME:
            cursor.skip(length)
            return None
        return cursor.take(length).decode("utf-8", errors="replace")
    if kind != _ARRAY or depth == _DEEPEST_ARRAY:
        raise cursor.fail(f"a setting has the unknown type {kind}")
    inner: int = cursor.number("<I")
    if inner in _SCALARS:
        cursor.skip(cursor.number("<Q") * struct.calcsize(_SCALARS[inner]))
    else:
        for _ in range(cursor.count("entries", 8)):
            _value(cursor, inner, depth + 1)
    return None


_Raw = tuple[str, tuple[int, ...], int, int]


def _raw_entry(cursor: _Cursor) -> _Raw:
    name = cursor.text("the name of a tensor")
    dimensions: int = cursor.number("<I")
    if dimensions > _MOST_DIMENSIONS:
        raise cursor.fail(f"tensor {short(name)} has {dimensions} dimensions, of {_MOST_DIMENSIONS} at most")
    shape = tuple(cursor.number("<Q") for _ in range(dimensions))
    return name, shape[::-1], cursor.number("<I"), cursor.number("<Q")


def _checked(path: Path, raw: _Raw, data: int, alignment: int, file_bytes: int) -> Entry:
    name, shape, number, offset = raw

    def reject(what: str) -> CheckpointError:
        return CheckpointError(f"{path}: tensor {short(name)} {what}", tensor=name, offset=min(data, file_bytes))

    block = BLOCKS.get(number)
    if block is None:
        raise reject(f"is of type {number}, which is not known here; a newer mpfast may know it")
    if storage_bits(shape, 64) is None:
        raise reject(f"has the shape {short(shape)}, too large for any address space")
    if block.entries > 1 and (not shape or shape[-1] % block.entries):
        raise reject(
            f"has the shape {short(shape)}, but {block.name} holds {block.entries} entries of a row in a block"
        )
    if offset % alignment:
        raise reject(f"begins {offset} bytes into the data, which is no multiple of {alignment}")
    needed = math.prod(shape) // block.entries * block.bytes
    begin, end = data + offset, data + offset + needed
    if end > file_bytes:
        raise reject(f"needs bytes {begin} to {end}, the file has {file_bytes}; it is truncated or damaged")
    return Entry(name, shape, block, begin, end)


def _check_apart(path: Path, entries: tuple[Entry, ...]) -> None:
    """Check that names are unique, and no two tensors have a byte in common."""
    names: set[str] = set()
    for entry in entries:
        if entry.name in names:
            raise CheckpointError(f"{path}: tensor {short(entry.name)} occurs twice", tensor=entry.name)
        names.add(entry.name)
    reached = 0
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin < reached and entry.end > entry.begin:
            what = f"begins at byte {entry.begin}, before the end of the tensor before it"
            raise CheckpointError(f"{path}: tensor {short(entry.name)} {what}", tensor=entry.name, offset=entry.begin)
        reached = max(reached, entry.end)
