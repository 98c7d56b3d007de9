"""Weights as the model computes with them, where something else is stored: below a mask, or directions and lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import as_numpy, widened
from mpfast.checkpoints.base import Checkpoint

__all__ = ["read_as_used"]


def read_as_used(checkpoint: Checkpoint, name: str, stored: str, masked_by: str, scaled_by: str) -> Any:
    """Read a tensor multiplied by its mask, or brought to its lengths.

    Parameters
    ----------
    checkpoint
        What holds them.
    name, stored
        Of the tensor, to who uses the model and in the checkpoint.
    masked_by, scaled_by
        As in `Role`. A weight that is computed in any other way is read by its name.
    """
    if scaled_by:
        return _scaled(checkpoint.read(stored), checkpoint.read(scaled_by), stored)
    if not masked_by:
        return checkpoint.read(name)
    tensor, mask = checkpoint.read(stored), checkpoint.read(masked_by)
    if hasattr(tensor, "masked_fill"):  # stays in its framework
        return tensor.detach().masked_fill(mask.detach() == 0, 0)
    entries = np.asarray(tensor)
    return np.where(np.asarray(mask) != 0, entries, np.zeros((), entries.dtype))


def _scaled(directions: Any, lengths: Any, name: str) -> NDArray[Any]:
    """Weight normalisation: every slice divided by its norm and multiplied by its length."""
    v, g = _wide(directions, name), _wide(lengths, name)
    axes = tuple(axis for axis, extent in enumerate(g.shape) if extent == 1)
    norms = np.sqrt(np.square(v, dtype=np.float64).sum(axis=axes, keepdims=True))
    scaled: NDArray[Any] = v * (g / np.where(norms > 0, norms, 1))
    return scaled.astype(np.float64 if v.dtype == np.float64 else np.float32)


def _wide(tensor: Any, name: str) -> NDArray[Any]:
    if isinstance(tensor, np.ndarray) and tensor.dtype == np.uint16:  # a reader's raw bits
        return widened(tensor)
    array, dtype = as_numpy(tensor, name=name)
    return widened(array) if dtype == "bfloat16" else array
