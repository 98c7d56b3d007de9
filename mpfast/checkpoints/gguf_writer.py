"""A GGUF file like another, some of whose tensors are of another type: its settings are kept as they are."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from mpfast.checkpoints.gguf_file import GgufFile
from mpfast.checkpoints.gguf_header import BLOCKS, Entry
from mpfast.support import named_errors

__all__ = ["GGUF_TYPES", "GgufWriter"]

#: Types that are written, and what ``general.file_type`` calls a file most of whose matrices are of one.
GGUF_TYPES = {"Q4_0": 2, "Q8_0": 7}
_FILE_TYPE, _UINT32 = "general.file_type", 4
# Of the blocks of ggml; a file that has some must say so.
_BLOCK_VERSION, _VERSION_NOW = "general.quantization_version", 2
_SETTINGS_AT = 16
_NUMBERS = {block.name: number for number, block in BLOCKS.items()}
_CHUNK_BYTES = 16 << 20


class GgufWriter:
    """One GGUF file being written; a context manager. Tensors that are not written are copied from the source.

    Parameters
    ----------
    source
        The file whose settings, names and order of tensors it has.
    path
        The file.
    kind
        Type of the tensors that are written, one of `GGUF_TYPES`.
    names
        Of these; the block of the type divides their rows.
    """

    def __init__(self, source: GgufFile, path: Path, kind: str, names: Mapping[str, object]) -> None:
        self._source, self._path = source, path
        header = source.header
        block = BLOCKS[_NUMBERS[kind]]
        start = bytearray(source.raw(0, header.settings_end))
        place = header.places.get(_FILE_TYPE)
        if place is not None and place[1] == _UINT32:
            start[place[0] : place[0] + 4] = struct.pack("<I", GGUF_TYPES[kind])
        if _BLOCK_VERSION not in header.places:
            struct.pack_into("<Q", start, _SETTINGS_AT, len(header.places) + 1)
            start += _text(_BLOCK_VERSION) + struct.pack("<II", _UINT32, _VERSION_NOW)
        at, entries = 0, bytearray()
        self._spans: dict[str, tuple[int, int]] = {}
        for entry in header.entries:
            taken = block if entry.name in names else entry.type
            size = (entry.end - entry.begin) // entry.type.bytes * entry.type.entries // taken.entries * taken.bytes
            entries += _entry(entry, _NUMBERS[taken.name], at)
            self._spans[entry.name] = at, at + size
            at += -(-size // header.alignment) * header.alignment
        self._data = -(-(len(start) + len(entries)) // header.alignment) * header.alignment
        self._missing = {entry.name: entry for entry in header.entries}
        self._stream: BinaryIO = path.open("wb")
        with named_errors(path):
            self._stream.write(start + entries)
            self._stream.truncate(self._data + at)

    def write(self, name: str, blocks: memoryview) -> None:
        """Write a tensor from the bytes of its blocks."""
        begin, end = self._spans[name]
        if blocks.nbytes != end - begin:
            raise ValueError(f"{self._path}: tensor {name!r} has {end - begin} bytes, not {blocks.nbytes}")
        with named_errors(self._path):
            self._stream.seek(self._data + begin)
            self._stream.write(blocks)
        del self._missing[name]

    def __enter__(self) -> GgufWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stream:
            for name, entry in self._missing.items() if error is None else ():
                self._copy(name, entry)

    def _copy(self, name: str, entry: Entry) -> None:
        with named_errors(self._path):
            self._stream.seek(self._data + self._spans[name][0])
            for at in range(entry.begin, entry.end, _CHUNK_BYTES):
                self._stream.write(self._source.raw(at, min(at + _CHUNK_BYTES, entry.end)))
        self._source.release(name)


def _entry(entry: Entry, number: int, offset: int) -> bytes:
    """What a file says of a tensor: name, dimensions, the contiguous one first, type and place."""
    sizes = entry.shape[::-1]
    return _text(entry.name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, number, offset)


def _text(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content
