"""Safetensors files that the ranks of a training run wrote, a piece of each tensor in every one, as one checkpoint.

PyTorch's `HuggingFaceStorageWriter` with ``save_distributed=True`` writes them: the header of a file says under
``DCP_SHARDING_INFO`` where in its tensor each piece begins. The pieces of a tensor tile it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from mpfast.checkpoints.base import NoTensor, TensorInfo
from mpfast.checkpoints.config_json import read_config
from mpfast.checkpoints.safetensors import SafetensorsFile
from mpfast.support import CheckpointError, parse_json, short

__all__ = ["DistributedSafetensors", "is_distributed", "open_whole_file"]

_KEY = "DCP_SHARDING_INFO"
_OFFSETS = "saved_offsets"
# Cells of the grid that the cuts of a tensor make: more than any mesh of devices, and no memory to speak of.
_MOST_CELLS = 1 << 22
_LARGEST_OFFSET = 2**62


def is_distributed(files: Iterable[Path]) -> bool:
    """Whether any of these safetensors files holds pieces of tensors; errors as `SafetensorsFile`."""
    return any(_KEY in SafetensorsFile(path).metadata for path in files)


def open_whole_file(path: Path) -> SafetensorsFile:
    """Open a safetensors file by itself.

    Raises
    ------
    CheckpointError
        It is malformed, or holds pieces of tensors whose others are elsewhere.
    """
    file = SafetensorsFile(path)
    if _KEY in file.metadata:
        raise CheckpointError(f"{path}: holds pieces of tensors, as one rank of several wrote it; pass its directory")
    return file


@dataclass(frozen=True, slots=True)
class _Piece:
    """Where in its tensor a piece begins, along each axis."""

    file: SafetensorsFile
    begins: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def place(self) -> tuple[slice, ...]:
        """The piece as an index of the tensor."""
        return tuple(slice(begin, begin + extent) for begin, extent in zip(self.begins, self.shape, strict=True))


class DistributedSafetensors:
    """Safetensors files whose tensors are pieces, as one checkpoint of whole tensors.

    Parameters
    ----------
    source : path
        The directory.
    files : list of path
        The files.

    Raises
    ------
    CheckpointError
        A file is malformed, does not say where its pieces belong, or a piece is missing or there twice.

    Attributes
    ----------
    shards : list of SafetensorsFile
        The open files.
    """

    def __init__(self, source: Path, files: list[Path]) -> None:
        self._source = source
        self.others: tuple[NoTensor, ...] = ()
        self.shards = [SafetensorsFile(path) for path in files]
        self._pieces: dict[str, list[_Piece]] = {}
        dtypes: dict[str, str] = {}
        for shard in self.shards:
            begins = _begins(shard)
            for info in shard.tensors:
                if dtypes.setdefault(info.name, info.dtype) != info.dtype:
                    raise self._error(info.name, f"is {dtypes[info.name]} in one file and {info.dtype} in {shard.path}")
                self._pieces.setdefault(info.name, []).append(_Piece(shard, begins[info.name], info.shape))
        self._infos = {
            name: TensorInfo(name, self._whole_shape(name, pieces), dtypes[name])
            for name, pieces in self._pieces.items()
        }

    @property
    def source(self) -> str:
        """The path of the directory."""
        return str(self._source)

    @property
    def config(self) -> Mapping[str, Any] | None:
        """What the ``config.json`` beside the files says; None where there is none."""
        return read_config(self._source)

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """All tensors, whole, in the order of their first pieces."""
        return tuple(self._infos.values())

    def read(self, name: str) -> Any:
        """Return one tensor: put together in memory, or a view of the mapped file where it is one piece."""
        pieces = self._pieces[name]
        if len(pieces) == 1:
            return pieces[0].file.read(name)
        whole = np.empty(self._infos[name].shape, pieces[0].file.read(name).dtype)
        for piece in pieces:
            whole[piece.place] = piece.file.read(name)
            piece.file.release(name)
        whole.flags.writeable = False
        return whole

    def prefetch(self, name: str) -> None:
        """Begin to read a tensor's pieces; see `Checkpoint.prefetch`."""
        for piece in self._pieces[name]:
            piece.file.prefetch(name)

    def release(self, name: str) -> None:
        """Give the memory of a tensor's pieces back; see `Checkpoint.release`."""
        for piece in self._pieces[name]:
            piece.file.release(name)

    def _whole_shape(self, name: str, pieces: list[_Piece]) -> tuple[int, ...]:
        """The shape that the pieces tile; CheckpointError where they do not."""
        dimensions = len(pieces[0].shape)
        if any(len(piece.shape) != dimensions for piece in pieces):
            raise self._error(name, "has pieces of different numbers of dimensions")
        ends = [[begin + extent for begin, extent in zip(p.begins, p.shape, strict=True)] for p in pieces]
        shape = tuple(max(along) for along in zip(*ends, strict=True)) if dimensions else ()
        covered = sum(math.prod(piece.shape) for piece in pieces)
        if covered != math.prod(shape) or not self._is_tiled(name, pieces, shape):
            raise self._error(
                name, f"is not tiled by its {len(pieces)} pieces: of {math.prod(shape)} entries they have {covered}"
            )
        return shape

    def _is_tiled(self, name: str, pieces: list[_Piece], shape: tuple[int, ...]) -> bool:
        """Whether pieces with as many entries as the tensor are everywhere: on the grid of all their cuts."""
        if len(pieces) == 1:
            return not any(pieces[0].begins)
        bounds = [(piece.place[axis] for piece in pieces) for axis in range(len(shape))]
        cuts = [np.unique([at for part in along for at in (part.start, part.stop)]) for along in bounds]
        if math.prod(len(along) for along in cuts) > _MOST_CELLS:
            raise self._error(name, "is cut into too many pieces")
        count = np.zeros([len(along) - 1 for along in cuts], np.int32)
        for piece in pieces:
            cells = (
                np.searchsorted(along, (part.start, part.stop)) for along, part in zip(cuts, piece.place, strict=True)
            )
            count[tuple(slice(*pair) for pair in cells)] += 1
        return bool((count == 1).all())

    def _error(self, name: str, what: str) -> CheckpointError:
        return CheckpointError(f"{self._source}: tensor {short(name)} {what}; are all files there?", tensor=name)


def _begins(file: SafetensorsFile) -> dict[str, tuple[int, ...]]:
    """Where the pieces of a file begin in their tensors; CheckpointError where its header does not say."""
    try:
        found = parse_json(file.metadata.get(_KEY, "null").encode())
    except ValueError as error:
        raise CheckpointError(f"{file.path}: {_KEY} is no valid JSON: {error}") from None
    begins = {}
    for info in file.tensors:
        entry = found.get(info.name) if isinstance(found, dict) else None
        offsets = entry.get(_OFFSETS) if isinstance(entry, dict) else None
        if not _is_corner(offsets, len(info.shape)):
            raise CheckpointError(
                f"{file.path}: {_KEY} does not say where in tensor {short(info.name)} its piece begins",
                tensor=info.name,
            )
        begins[info.name] = tuple(offsets)
    return begins


def _is_corner(value: Any, dimensions: int) -> TypeGuard[list[int]]:
    """Whether a value of the header is the first corner of a piece of so many dimensions."""
    return (
        isinstance(value, list)
        and len(value) == dimensions
        and all(type(at) is int and 0 <= at <= _LARGEST_OFFSET for at in value)
    )
