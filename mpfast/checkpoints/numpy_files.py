"""Readers for NumPy's ``.npy`` (one array) and ``.npz`` (a zip archive of them); pickles are never loaded."""

from __future__ import annotations

import os
import weakref
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import native
from mpfast.checkpoints.base import NoTensor, TensorInfo
from mpfast.support import CheckpointError, is_shape, is_text, short, storage_bits

__all__ = ["NpyFile", "NpzFile"]

# Deflate packs no more than this into a byte; what a member claims beyond that is a lie, found before memory is taken.
_MAX_DEFLATION = 1032
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class NpyFile:
    """One ``.npy`` file, memory-mapped; its single tensor is named after the file.

    Raises
    ------
    CheckpointError
        The file is malformed, truncated, or holds pickled Python objects.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        with self._path.open("rb") as stream:
            try:
                shape, by_columns, dtype = _read_npy_header(stream)
                data_begin = stream.tell()
                data_bytes = os.fstat(stream.fileno()).st_size - data_begin
                _check_data(shape, dtype, data_bytes)
                self._array: NDArray[Any] | None = None
                if not dtype.hasobject:
                    # An empty section of a file cannot be mapped, and need not be.
                    if data_bytes:
                        order: Literal["C", "F"] = "F" if by_columns else "C"
                        mapped = np.memmap(stream, dtype, "r", data_begin, shape, order)
                        self._array = mapped.view(np.ndarray)
                    else:
                        self._array = np.empty(shape, dtype)
                        self._array.flags.writeable = False
            except (ValueError, OverflowError) as error:
                raise CheckpointError(f"{self._path}: no valid .npy file: {error}", offset=0) from None
        if not is_text(self._path.stem):
            raise CheckpointError(f"{self._path}: the file's name is no valid Unicode")
        self._info = TensorInfo(self._path.stem, shape, dtype.name)
        self.config: Mapping[str, Any] | None = None
        self.others: tuple[NoTensor, ...] = ()

    @property
    def source(self) -> str:
        """The path of the file."""
        return str(self._path)

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The one tensor."""
        return (self._info,)

    def read(self, name: str) -> NDArray[Any]:
        """Return the array as a read-only view of the mapped file; a copy where its bytes are in the other order."""
        if name != self._info.name:
            raise KeyError(name)
        if self._array is None:
            raise CheckpointError(f"{self._path}: holds pickled Python objects, which are not read", tensor=name)
        return native(self._array)

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
        stream = self._path.open("rb")
        try:
            self._bytes = os.fstat(stream.fileno()).st_size
            self._archive = zipfile.ZipFile(stream)
        except Exception as error:  # zipfile raises its own, struct.error and others, by where the damage is
            stream.close()
            raise CheckpointError(f"{self._path}: no valid .npz archive: {error}", offset=0) from None
        # The archive stays open as long as this object lives: members are read from it.
        weakref.finalize(self, stream.close)
        self.config: Mapping[str, Any] | None = None
        self._members: dict[str, zipfile.ZipInfo] = {}
        others: list[NoTensor] = []
        self._infos: list[TensorInfo] = []
        for member in self._archive.infolist():
            if member.filename.endswith(".npy"):
                self._add(member.filename.removesuffix(".npy"), member)
            elif not member.filename.endswith("/"):  # a name may be empty, which is_dir() of old Pythons cannot take
                others.append(
                    NoTensor(short(member.filename).strip("'"), "file", "no .npy array in the archive", lost=True)
                )
        self.others = tuple(others)

    def _add(self, name: str, member: zipfile.ZipInfo) -> None:
        if name in self._members:
            raise CheckpointError(
                f"{self._path}: tensor {short(name)} occurs twice", tensor=name, offset=member.header_offset
            )
        try:
            self._check_sizes(member)
            with self._archive.open(member) as stream:
                shape, _, dtype = _read_npy_header(stream)
                # The archive says how long the member is once unpacked, so a lying header costs no memory.
                _check_data(shape, dtype, member.file_size - stream.tell())
        except Exception as error:  # as above; RuntimeError: the member is encrypted
            raise self._damaged(name, member, error) from None
        self._members[name] = member
        self._infos.append(TensorInfo(name, shape, dtype.name))

    def _check_sizes(self, member: zipfile.ZipInfo) -> None:
        if not is_text(member.filename):
            raise ValueError("its name is no valid Unicode")
        if member.compress_type not in _METHODS:
            raise ValueError(f"it is compressed by method {member.compress_type}, which NumPy does not write")
        if not 0 <= member.header_offset <= self._bytes - member.compress_size:
            raise ValueError("it reaches beyond the end of the archive")
        limit = member.compress_size * (1 if member.compress_type == zipfile.ZIP_STORED else _MAX_DEFLATION)
        if member.file_size > limit:
            raise ValueError(f"{member.compress_size} bytes cannot hold the {member.file_size} that it claims")

    def _damaged(self, name: str, member: zipfile.ZipInfo, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{self._path}: tensor {short(name)} is damaged: {error}", tensor=name, offset=member.header_offset
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
        except MemoryError:
            raise
        except Exception as error:  # of many types, by where the damage is
            raise self._damaged(name, member, error) from None
        array = native(array)
        array.flags.writeable = False
        return array

    def prefetch(self, name: str) -> None:
        """Do nothing: reading is left to the system."""

    def release(self, name: str) -> None:
        """Do nothing: every `read` returns an array of its own."""


def _read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether the order is Fortran's, and type; ValueError for whatever is wrong."""
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, by_columns, dtype = np.lib.format.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, by_columns, dtype = np.lib.format.read_array_header_2_0(stream)
        else:
            # Version 3 exists for structured types with names outside Latin-1, which are no weights.
            raise ValueError(f"version {version[0]}.{version[1]} of the format holds structured arrays, not weights")
    except ValueError:
        raise
    except Exception as error:  # Python's parser and tokeniser, which read the header, have errors of many types
        raise ValueError(f"the header cannot be read: {type(error).__name__}: {error}") from None
    if not is_shape(shape):
        raise ValueError(f"the shape {short(shape)} is none")
    if dtype.itemsize == 0 or dtype.subdtype is not None:
        raise ValueError(f"the type {short(dtype.str)} has no entries of a size")
    return shape, by_columns, dtype


def _check_data(shape: tuple[int, ...], dtype: np.dtype[Any], data_bytes: int) -> None:
    bits = storage_bits(shape, 8 * dtype.itemsize)
    if bits is None:
        raise ValueError(f"the shape {short(shape)} is too large for any address space")
    if not dtype.hasobject and bits != 8 * data_bytes:
        raise ValueError(f"{dtype} of shape {shape} needs {bits // 8} bytes of data, there are {data_bytes}")
