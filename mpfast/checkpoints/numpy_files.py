"""Readers for NumPy's ``.npy`` (one array) and ``.npz`` (a zip archive of them); pickles are never loaded."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mpfast.checkpoints.base import TensorInfo
from mpfast.errors import CheckpointError

__all__ = ["NpyFile", "NpzFile"]

_DAMAGED = (
    ValueError,
    EOFError,
    KeyError,
    OverflowError,
    RecursionError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
)


class NpyFile:
    """One ``.npy`` file, memory-mapped; its single tensor is named after the file.

    Raises
    ------
    CheckpointError
        The file is malformed, truncated, or holds pickled Python objects.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        try:
            with self._path.open("rb") as stream:
                shape, dtype = _read_npy_header(stream)
                data_begin = stream.tell()
                data_bytes = os.fstat(stream.fileno()).st_size - data_begin
            _check_data(shape, dtype, data_bytes)
            self._array: NDArray[Any] | None = None
            if not dtype.hasobject:
                # An empty section of a file cannot be mapped, and need not be.
                if data_bytes:
                    self._array = np.load(self._path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
                else:
                    self._array = np.empty(shape, dtype)
        except _DAMAGED as error:
            raise CheckpointError(f"{self._path}: no valid .npy file: {error}", offset=0) from None
        self._info = TensorInfo(self._path.stem, shape, dtype.name)

    @property
    def source(self) -> str:
        """The path of the file."""
        return str(self._path)

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The one tensor."""
        return (self._info,)

    def read(self, name: str) -> NDArray[Any]:
        """Return the array as a read-only view of the mapped file."""
        if name != self._info.name:
            raise KeyError(name)
        if self._array is None:
            raise CheckpointError(f"{self._path}: holds pickled Python objects, which are not read", tensor=name)
        return self._array

    def prefetch(self, name: str) -> None:
        """Do nothing: reading is left to the system."""

    def release(self, name: str) -> None:
        """Do nothing: the file holds one array only."""


class NpzFile:
    """One ``.npz`` archive; members are decompressed one at a time, when read.

    Raises
    ------
    CheckpointError
        The archive or a member is malformed or truncated.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        try:
            self._archive = zipfile.ZipFile(self._path)
        except _DAMAGED as error:
            raise CheckpointError(f"{self._path}: no valid .npz archive: {error}", offset=0) from None
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._infos: list[TensorInfo] = []
        for member in self._archive.infolist():
            if member.filename.endswith(".npy"):
                self._add(member.filename.removesuffix(".npy"), member)

    def _add(self, name: str, member: zipfile.ZipInfo) -> None:
        if name in self._members:
            raise CheckpointError(
                f"{self._path}: tensor {name!r} occurs twice", tensor=name, offset=member.header_offset
            )
        try:
            with self._archive.open(member) as stream:
                shape, dtype = _read_npy_header(stream)
                # The archive says how long the member is once unpacked, so a lying header costs no memory.
                _check_data(shape, dtype, member.file_size - stream.tell())
        except (*_DAMAGED, RuntimeError) as error:  # RuntimeError: the member is encrypted
            raise self._damaged(name, member, error) from None
        self._members[name] = member
        self._infos.append(TensorInfo(name, shape, dtype.name))

    def _damaged(self, name: str, member: zipfile.ZipInfo, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{self._path}: tensor {name!r} is damaged: {error}", tensor=name, offset=member.header_offset
        )

    @property
    def source(self) -> str:
        """The path of the archive."""
        return str(self._path)

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """All arrays in the order of the archive."""
        return tuple(self._infos)

    def read(self, name: str) -> NDArray[Any]:
        """Decompress and return one array.

        Raises
        ------
        KeyError
            No array has this name.
        CheckpointError
            The data is damaged (its checksum is verified) or pickled.
        """
        member = self._members[name]
        try:
            with self._archive.open(member) as stream:
                array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
        except _DAMAGED as error:
            raise self._damaged(name, member, error) from None
        array.flags.writeable = False
        return array

    def prefetch(self, name: str) -> None:
        """Do nothing: reading is left to the system."""

    def release(self, name: str) -> None:
        """Do nothing: every `read` returns an array of its own."""


def _read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        # Version 3 exists for structured types with names outside Latin-1, which are no weights.
        raise ValueError(f"version {version[0]}.{version[1]} of the format holds structured arrays, not weights")
    if any(extent < 0 for extent in shape):
        raise ValueError(f"negative shape {shape}")
    return shape, dtype


def _check_data(shape: tuple[int, ...], dtype: np.dtype[Any], data_bytes: int) -> None:
    needed = math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and needed != data_bytes:
        raise ValueError(f"{dtype} of shape {shape} needs {needed} bytes of data, there are {data_bytes}")
