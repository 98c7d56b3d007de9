"""What every checkpoint reader offers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import as_numpy, widened

__all__ = ["Checkpoint", "TensorInfo", "numbers", "prefetched"]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Name, shape and element type of a tensor, known before a byte of its data is read.

    Attributes
    ----------
    name : str
        Name in the checkpoint, unique in it.
    shape : tuple of int
        Shape as stored.
    dtype : str
        Element type by NumPy's names (``"float32"``, ``"int64"``), extended by ``"bfloat16"``,
        ``"float8_e4m3fn"`` and the like, whatever the file format calls it.
    kind : {"embedding", "conv", None}
        What the model's modules say that it is; None where only the name can tell.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str | None = field(default=None, repr=False)

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


class Checkpoint(Protocol):
    """A named collection of tensors that are read one at a time."""

    @property
    def source(self) -> str:
        """Where the tensors come from, for messages and reports: a path or a type name."""

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """All tensors in the order of the checkpoint."""

    def read(self, name: str) -> Any:
        """Return one tensor, in its stored shape; read-only. Safe to call from several threads at once.

        The result is an array of the type that ``TensorInfo.dtype`` names, or, for types NumPy lacks, a
        NumPy array of unsigned integers that holds their bits (``bfloat16`` as ``uint16``).

        Raises
        ------
        KeyError
            No tensor has this name.
        CheckpointError
            The stored data is damaged.
        """

    def prefetch(self, name: str) -> None:
        """Ask the system to fetch a tensor that is to be read next; returns at once."""

    def release(self, name: str) -> None:
        """Give the memory of a tensor back, if the system can: it stays valid, and is read again when it is used."""


def prefetched(names: Iterable[str], *checkpoints: Checkpoint) -> Iterator[str]:
    """Yield the names, and have each tensor's successor fetched from these checkpoints while it is worked on."""
    remaining = iter(names)
    name = next(remaining, None)
    while name is not None:
        following = next(remaining, None)
        if following is not None:
            for checkpoint in checkpoints:
                checkpoint.prefetch(following)
        yield name
        name = following


def numbers(tensor: Any, info: TensorInfo) -> NDArray[Any]:
    """Return a floating-point tensor of a checkpoint in float32, or float64 if it is stored so."""
    if not isinstance(tensor, np.ndarray):
        tensor, _ = as_numpy(tensor, name=info.name)
    if info.dtype == "bfloat16":
        return widened(tensor.view(np.uint16))
    wide: NDArray[Any] = tensor if info.dtype == "float64" else tensor.astype(np.float32, copy=False)
    return wide
