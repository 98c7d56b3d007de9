"""Reader for safetensors files: memory-mapped, NumPy only, nothing trusted before it is checked.

A file is ``N`` (8 bytes, little endian) · a JSON object of ``N`` bytes · the data. The JSON maps tensor names
to ``{"dtype", "shape", "data_offsets": [begin, end]}``, offsets counted from the start of the data, and may
carry ``"__metadata__"``, a map of strings to strings. The tensors must tile the data exactly: no overlap, no
hole, nothing after the last one.

References
----------
The format's specification, https://github.com/huggingface/safetensors, section "Format".
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.checkpoints.base import NoTensor, TensorInfo
from mpfast.checkpoints.config_json import read_config
from mpfast.checkpoints.mapped_pages import drop_pages, fetch_pages
from mpfast.support import (
    MAX_DIMENSIONS,
    CheckpointError,
    InvalidValueError,
    is_shape,
    is_text,
    no_constant,
    short,
    storage_bits,
    unique_keys,
)

__all__ = ["SafetensorsFile", "is_safetensors"]

PREFIX_BYTES = 8
# The limit of the reference implementation; a larger header is an attack or another kind of file.
MAX_HEADER_BYTES = 100_000_000
METADATA_KEY = "__metadata__"


@dataclass(frozen=True, slots=True)
class _ElementType:
    """How a stored type is reported (`name`), how wide it is, and the NumPy type its memory is read as."""

    name: str
    bits: int
    storage: str


_ELEMENT_TYPES = {
    "F64": _ElementType("float64", 64, "<f8"),
    "F32": _ElementType("float32", 32, "<f4"),
    "F16": _ElementType("float16", 16, "<f2"),
    "BF16": _ElementType("bfloat16", 16, "<u2"),
    "C64": _ElementType("complex64", 64, "<c8"),
    "I64": _ElementType("int64", 64, "<i8"),
    "I32": _ElementType("int32", 32, "<i4"),
    "I16": _ElementType("int16", 16, "<i2"),
    "I8": _ElementType("int8", 8, "i1"),
    "U64": _ElementType("uint64", 64, "<u8"),
    "U32": _ElementType("uint32", 32, "<u4"),
    "U16": _ElementType("uint16", 16, "<u2"),
    "U8": _ElementType("uint8", 8, "u1"),
    "BOOL": _ElementType("bool", 8, "u1"),
    "F8_E4M3": _ElementType("float8_e4m3fn", 8, "u1"),
    "F8_E5M2": _ElementType("float8_e5m2", 8, "u1"),
    "F8_E4M3FNUZ": _ElementType("float8_e4m3fnuz", 8, "u1"),
    "F8_E5M2FNUZ": _ElementType("float8_e5m2fnuz", 8, "u1"),
    "F8_E8M0": _ElementType("float8_e8m0fnu", 8, "u1"),
    "F6_E2M3": _ElementType("float6_e2m3fn", 6, ""),
    "F6_E3M2": _ElementType("float6_e3m2fn", 6, ""),
    "F4": _ElementType("float4_e2m1fn", 4, ""),
}


_CODES = {element.name: code for code, element in _ELEMENT_TYPES.items()}


def element_code(dtype: str) -> str:
    """Return the format's name of an element type; ValueError if it has none."""
    if dtype not in _CODES:
        raise InvalidValueError("", f"safetensors files hold no {dtype}")
    return _CODES[dtype]


def stored_bytes(info: TensorInfo) -> int:
    """Return how many bytes a tensor's data takes."""
    return info.size * _ELEMENT_TYPES[element_code(info.dtype)].bits // 8


def is_safetensors(first: bytes, file_bytes: int) -> bool:
    """Whether a file that begins like this, ten bytes are enough, is of this format."""
    length = int.from_bytes(first[:PREFIX_BYTES], "little")
    return first[PREFIX_BYTES : PREFIX_BYTES + 1] == b"{" and 2 <= length <= min(
        MAX_HEADER_BYTES, file_bytes - PREFIX_BYTES
    )


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor whose header entry has passed every check; `begin` and `end` are offsets in the file."""

    info: TensorInfo
    storage: str
    begin: int
    end: int


class SafetensorsFile:
    """One safetensors file, open for reading.

    Parameters
    ----------
    path : str or path-like
        The file. It stays memory-mapped while this object or an array it returned is alive and must not be
        shortened in that time.

    Raises
    ------
    FileNotFoundError, PermissionError, IsADirectoryError
        The file cannot be opened.
    CheckpointError
        The file breaks the format in any way; the message names the tensor and the byte offset.

    Attributes
    ----------
    metadata : dict of str to str
        The file's ``__metadata__``, empty if it has none.
    others : tuple of NoTensor
        Other checkpoints of its directory, where that was opened and this file chosen.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        with self._path.open("rb") as stream:
            file_bytes = os.fstat(stream.fileno()).st_size
            header, data_begin = _read_header(self._path, stream.read, file_bytes)
            # The whole file at once: the views share one map, and no file descriptor stays open.
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self._data_begin = data_begin
        self.others: tuple[NoTensor, ...] = ()
        self.metadata = _checked_metadata(self._path, header.pop(METADATA_KEY, {}))
        self._entries = {
            name: _checked_entry(self._path, name, value, data_begin, file_bytes) for name, value in header.items()
        }
        _check_tiling(self._path, list(self._entries.values()), data_begin, file_bytes)

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def header(self) -> bytes:
        """All bytes before the data, as they are."""
        return self._map[: self._data_begin]

    @property
    def spans(self) -> dict[str, tuple[int, int]]:
        """First byte of each tensor in the file and the one after its last, in the order of the header."""
        return {name: (entry.begin, entry.end) for name, entry in self._entries.items()}

    @property
    def source(self) -> str:
        """The path of the file."""
        return str(self._path)

    @property
    def config(self) -> Mapping[str, Any] | None:
        """What the ``config.json`` beside the file says; None where there is none."""
        return read_config(self._path.parent)

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """All tensors in the order of the header."""
        return tuple(entry.info for entry in self._entries.values())

    def read(self, name: str) -> NDArray[Any]:
        """Return one tensor as a read-only view of the mapped file; bfloat16 and float8 come as their bits.

        A tensor that does not start at a multiple of its item size, which the format permits, is copied.

        Raises
        ------
        KeyError
            No tensor has this name.
        CheckpointError
            The element type is narrower than a byte.
        """
        entry = self._entries[name]
        if not entry.storage:
            raise CheckpointError(
                f"{self._path}: tensor {name!r} is {entry.info.dtype}, below a byte; dequantise it first",
                tensor=name,
                offset=entry.begin,
            )
        if entry.begin == entry.end:
            empty = np.empty(entry.info.shape, entry.storage)
            empty.flags.writeable = False
            return empty
        flat = np.frombuffer(self._map, entry.storage, count=entry.info.size, offset=entry.begin)
        if not flat.flags.aligned:
            flat = flat.copy()
            flat.flags.writeable = False
        return flat.reshape(entry.info.shape)

    def raw(self, name: str) -> memoryview:
        """Return the bytes of one tensor of any type, a view of the mapped file."""
        entry = self._entries[name]
        return memoryview(self._map)[entry.begin : entry.end]

    def prefetch(self, name: str) -> None:
        """Begin to read a tensor's pages."""
        fetch_pages(self._map, self._entries[name].begin, self._entries[name].end)

    def release(self, name: str) -> None:
        """Drop a tensor's pages from this process; the system's cache of the file may keep them."""
        drop_pages(self._map, self._entries[name].begin, self._entries[name].end)


def _read_header(path: Path, read: Any, file_bytes: int) -> tuple[dict[str, Any], int]:
    """Return the header as a dictionary and the offset where the data begins."""
    if file_bytes < PREFIX_BYTES:
        raise CheckpointError(
            f"{path}: {file_bytes} bytes are too few for a safetensors file; is the download complete?",
            offset=0,
        )
    length = int.from_bytes(read(PREFIX_BYTES), "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path}: the header claims {length} bytes, more than the limit of {MAX_HEADER_BYTES}; "
            "this is not a safetensors file",
            offset=0,
        )
    if PREFIX_BYTES + length > file_bytes:
        raise CheckpointError(
            f"{path}: the header needs {PREFIX_BYTES + length} bytes, the file has {file_bytes}; "
            "it is truncated or not a safetensors file",
            offset=0,
        )
    raw: bytes = read(length)
    if not raw.startswith(b"{"):
        raise CheckpointError(f"{path}: the header does not start with '{{'", offset=PREFIX_BYTES)
    try:
        # A decoder that fails on NaN and repeated keys: json's defaults let both pass in silence.
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique_keys, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        position = getattr(error, "pos", getattr(error, "start", 0))
        raise CheckpointError(
            f"{path}: the header is no valid JSON: {error}",
            tensor=getattr(error, "key", None),
            offset=PREFIX_BYTES + position,
        ) from None
    return header, PREFIX_BYTES + length


def _checked_metadata(path: Path, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(is_text(k) and is_text(v) for k, v in value.items()):
        raise CheckpointError(f"{path}: {METADATA_KEY} must map strings to strings", offset=PREFIX_BYTES)
    return value


def _checked_entry(path: Path, name: str, value: Any, data_begin: int, file_bytes: int) -> _Entry:
    """Check one header entry by itself; `_check_tiling` looks at all of them together."""

    def reject(what: str, offset: int = PREFIX_BYTES) -> CheckpointError:
        return CheckpointError(f"{path}: tensor {short(name)} {what}", tensor=name, offset=offset)

    if not is_text(name):
        raise reject("has a name that is no valid Unicode")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise reject("must have exactly the keys dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    element = _ELEMENT_TYPES.get(dtype) if isinstance(dtype, str) else None
    if element is None:
        raise reject(f"has the unknown dtype {short(dtype)}")
    if not is_shape(shape):
        raise reject(f"has the shape {short(shape)}; non-negative integers are expected, {MAX_DIMENSIONS} at most")
    bits = storage_bits(shape, element.bits)
    if bits is None:
        raise reject(f"has the shape {short(shape)}, too large for any address space")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(at) is int for at in offsets):
        raise reject(f"has the data_offsets {short(offsets)}; two integers are expected")
    begin, end = offsets
    if not 0 <= begin <= end:
        raise reject(f"has the data_offsets {short(offsets)}, which run backwards or are negative")
    if data_begin + end > file_bytes:
        raise reject(
            f"has the data_offsets {short(offsets)}, the data has {file_bytes - data_begin} bytes; "
            "the file is truncated or damaged",
            min(data_begin + begin, file_bytes),
        )
    if bits % 8 != 0 or bits // 8 != end - begin:
        raise reject(
            f"has {end - begin} bytes of data, but {dtype} of shape {shape} needs {bits / 8:.16g}",
            data_begin + begin,
        )
    info = TensorInfo(name, tuple(shape), element.name)
    return _Entry(info, element.storage, data_begin + begin, data_begin + end)


def _check_tiling(path: Path, entries: list[_Entry], data_begin: int, file_bytes: int) -> None:
    """Check that the tensors cover the data from its first byte to the last, each byte once."""
    position = data_begin
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != position:
            what = "overlaps the tensor before it" if entry.begin < position else "leaves a hole before it"
            raise CheckpointError(
                f"{path}: tensor {entry.info.name!r} starts at byte {entry.begin}, not {position}: it {what}",
                tensor=entry.info.name,
                offset=entry.begin,
            )
        position = entry.end
    if position != file_bytes:
        raise CheckpointError(
            f"{path}: {file_bytes - position} bytes after the last tensor belong to none", offset=position
        )
