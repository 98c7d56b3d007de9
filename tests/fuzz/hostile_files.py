"""Directories of hostile files, and what reads all that is in them."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mpfast.arrays import QuantisedArray
from mpfast.checkpoints import open_checkpoint
from mpfast.support import CheckpointError

MODERATE = 1 << 20


class Folder:
    """A directory of hostile files, emptied for every input."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="mpfast-fuzz-"))

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def read_all(path: Path) -> None:
    """Open a checkpoint and read its tensors: it works, or the file is refused."""
    try:
        checkpoint = open_checkpoint(path)
    except (CheckpointError, MemoryError):
        return
    assert len({info.name for info in checkpoint.tensors}) == len(checkpoint.tensors)
    for info in checkpoint.tensors[:8]:
        checkpoint.prefetch(info.name)
        try:
            found = checkpoint.read(info.name)
        except (CheckpointError, MemoryError):
            continue
        assert tuple(found.shape) == info.shape
        if isinstance(found, np.ndarray) and 0 < found.size < MODERATE:
            found.tobytes()
        if isinstance(found, QuantisedArray) and found.size < MODERATE:
            with contextlib.suppress(CheckpointError):  # of parts that are damaged inside
                assert np.asarray(found).shape == info.shape
                found.rounding()
        checkpoint.release(info.name)


def header_of(dtype: str = "F32", shape: tuple[int, ...] = (2, 3), begin: int = 0, end: int = 24) -> dict[str, Any]:
    """What the header of a safetensors file says of a tensor."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
