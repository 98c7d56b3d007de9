"""Writer of safetensors files, tensor by tensor in any order; the file is as long as it will be from the start."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import native
from mpfast.checkpoints.base import TensorInfo
from mpfast.checkpoints.safetensors import METADATA_KEY, PREFIX_BYTES, SafetensorsFile, element_code, stored_bytes
from mpfast.support import InvalidValueError, is_text, named_errors, short

__all__ = ["SafetensorsWriter"]

# Written at a time: a copy of a large tensor is never in memory as a whole.
CHUNK_BYTES = 16 << 20
# The reference implementation pads its header so that the data starts at a multiple of this.
ALIGNMENT = 8


class SafetensorsWriter:
    """One safetensors file being written; a context manager. Every tensor must be written once.

    Use `like` for a file with the names, types, order, metadata and layout of another, `create` for a new one.

    Parameters
    ----------
    path : path
        The file. An existing one with the same header and size is compared with what is written, and only what
        differs is written; any other is overwritten. Its tensors count as not written all the same.
    header : bytes
        All bytes before the data.
    spans : mapping of str to (int, int)
        Where each tensor goes: its first byte in the file and the one after its last.
    """

    def __init__(self, path: Path, header: bytes, spans: Mapping[str, tuple[int, int]]) -> None:
        self.path = path
        self._spans = dict(spans)
        self._missing = dict.fromkeys(spans)
        size = max((end for _, end in spans.values()), default=len(header))
        self._compares = _begins_with(path, header, size)
        self._stream = path.open("r+b" if self._compares else "wb")
        if not self._compares:
            with named_errors(path):
                self._stream.truncate(size)
                self._stream.write(header)
        self._waiting = 0

    @classmethod
    def like(cls, source: SafetensorsFile, path: Path) -> SafetensorsWriter:
        """Write a file whose header is that of `source`, byte for byte."""
        return cls(path, source.header, source.spans)

    @classmethod
    def create(cls, path: Path, tensors: Sequence[TensorInfo], metadata: Mapping[str, str]) -> SafetensorsWriter:
        """Write a new file with these tensors, in this order.

        Raises
        ------
        InvalidValueError
            A type or a name that the format lacks, or a name that occurs twice.
        """
        header: dict[str, Any] = {METADATA_KEY: dict(metadata)} if metadata else {}
        position = 0
        offsets: dict[str, tuple[int, int]] = {}
        for info in tensors:
            if info.name == METADATA_KEY or info.name in offsets or not is_text(info.name):
                raise InvalidValueError(
                    "", f"{path.name}: a safetensors file cannot have a tensor {short(info.name)} more"
                )
            try:
                end = position + stored_bytes(info)
            except ValueError as error:
                raise InvalidValueError("", f"{info.name}: {error}") from None
            offsets[info.name] = (position, end)
            header[info.name] = {
                "dtype": element_code(info.dtype),
                "shape": list(info.shape),
                "data_offsets": [position, end],
            }
            position = end
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-(PREFIX_BYTES + len(text)) % ALIGNMENT)
        prefix = len(text).to_bytes(PREFIX_BYTES, "little") + text
        spans = {name: (len(prefix) + begin, len(prefix) + end) for name, (begin, end) in offsets.items()}
        return cls(path, prefix, spans)

    def write(self, name: str, data: NDArray[Any] | memoryview) -> None:
        """Write one tensor: an array in row-major order, or its bytes.

        Raises
        ------
        KeyError
            No tensor of this name belongs into the file.
        ValueError
            The data has not the size of the tensor.
        """
        if isinstance(data, np.ndarray):
            data = np.ascontiguousarray(native(data)).reshape(-1).view(np.uint8).data
        self.write_chunks(name, (data[at : at + CHUNK_BYTES] for at in range(0, data.nbytes, CHUNK_BYTES)))

    def write_chunks(self, name: str, chunks: Iterable[memoryview]) -> None:
        """Write one tensor from its bytes in pieces; errors as `write`."""
        begin, end = self._spans[name]
        written = 0
        self._stream.seek(begin)
        for chunk in chunks:
            written += chunk.nbytes
            if begin + written <= end:
                with named_errors(self.path):
                    self._put(begin + written - chunk.nbytes, chunk)
        if begin + written != end:
            raise ValueError(f"{self.path}: tensor {name!r} has {end - begin} bytes, not {written}")
        self._missing.pop(name, None)

    def _put(self, position: int, chunk: memoryview) -> None:
        """Write what is not there already."""
        if self._compares:
            there = np.frombuffer(self._stream.read(chunk.nbytes), np.uint8)
            if np.array_equal(there, np.frombuffer(chunk, np.uint8)):
                return
            self._stream.seek(position)
        self._stream.write(chunk)
        self._start_writing(chunk.nbytes)

    def _start_writing(self, added: int) -> None:
        """Let the disk work from now on, not only when the file is closed, and free the memory of what it has done.

        The system's cache would otherwise fill up with the file, and the last flush would wait for most of it.
        """
        self._waiting += added
        if self._waiting >= CHUNK_BYTES and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            self._waiting = 0

    @property
    def missing(self) -> tuple[str, ...]:
        """Tensors that were not written yet, in the order of the header."""
        return tuple(self._missing)

    def close(self) -> None:
        """Flush the file to the disk.

        Raises
        ------
        ValueError
            A tensor was not written.
        """
        try:
            if self._missing:
                first = self.missing[0]
                raise ValueError(f"{self.path}: {len(self._missing)} tensors were not written, {first!r} first")
            with named_errors(self.path):
                self._stream.flush()
                os.fsync(self._stream.fileno())
        finally:
            self._stream.close()

    def abandon(self) -> None:
        """Close the file as it is."""
        with contextlib.suppress(OSError):  # of the disk that is full: what is in the buffer is of no use any more
            self._stream.close()

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()


def _begins_with(path: Path, header: bytes, size: int) -> bool:
    try:
        with path.open("rb") as stream:
            return os.fstat(stream.fileno()).st_size == size and stream.read(len(header)) == header
    except OSError:
        return False
