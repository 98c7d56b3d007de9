"""Masks on disk: one bit per weight in a safetensors file that any reader opens.

Tensor ``name`` holds the mask of weight ``name``: its bits in row-major order, packed eight to a byte, the first in the
lowest bit (``numpy.unpackbits(..., bitorder="little")``), 1 = kept. The file's metadata gives ``format`` and, as JSON,
``shapes`` from name to the shape of the weight.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.checkpoints.base import TensorInfo
from mpfast.checkpoints.safetensors import SafetensorsFile
from mpfast.checkpoints.safetensors_writer import SafetensorsWriter
from mpfast.support import CheckpointError, Record, check_path, front_door, parse_json

__all__ = ["FORMAT", "MASKS_FILE", "MaskFile", "mask_writer", "packed"]

FORMAT = "mpfast.masks/1"
#: Name of the file that `mpfast.prune` writes beside the weights.
MASKS_FILE = "masks.safetensors"


def packed(keep: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the bits of a mask, eight to a byte."""
    return np.packbits(keep.reshape(-1), bitorder="little")


def mask_writer(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> SafetensorsWriter:
    """Begin a mask file; every mask is to be written in its `packed` form."""
    tensors = [TensorInfo(name, ((math.prod(shape) + 7) // 8,), "uint8") for name, shape in shapes.items()]
    listed = json.dumps({name: list(shape) for name, shape in shapes.items()}, separators=(",", ":"))
    return SafetensorsWriter.create(path, tensors, {"format": FORMAT, "shapes": listed})


class MaskFile(Mapping[str, Any]):
    """The masks of a file, read one at a time: a mapping from the weight's name to a boolean array, True = kept.

    Raises
    ------
    CheckpointError
        The file is no mask file, or damaged.
    """

    @front_door
    def __init__(self, path: str | os.PathLike[str]) -> None:
        check_path(path, "path")
        self._file = SafetensorsFile(path)
        if self._file.metadata.get("format") != FORMAT:
            raise CheckpointError(f"{path}: is no mask file: its metadata does not say format={FORMAT}")
        try:
            shapes = Record(parse_json(self._file.metadata.get("shapes", "")), "the shapes")
            self._shapes = {name: shapes.shape(name) for name in shapes}
        except ValueError as error:
            raise CheckpointError(f"{path}: the shapes in its metadata are damaged: {error}") from None
        sizes = {info.name: info.size for info in self._file.tensors}
        wanted = {name: (math.prod(shape) + 7) // 8 for name, shape in self._shapes.items()}
        if sizes != wanted or any(info.dtype != "uint8" for info in self._file.tensors):
            raise CheckpointError(f"{path}: the masks do not have the sizes that its metadata gives")

    def __getitem__(self, name: str) -> NDArray[np.bool_]:
        shape = self._shapes[name]
        bits = np.unpackbits(self._file.read(name), count=math.prod(shape), bitorder="little")
        return bits.view(np.bool_).reshape(shape)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes  # the inherited one would read the mask

    def __iter__(self) -> Any:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Shape of the mask of a weight."""
        return self._shapes[name]
