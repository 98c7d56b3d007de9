"""How the masks of a checkpoint come about when its tensors are read one at a time.

A plan looks at the weights as often as it must when it is made, and then gives out the masks, tensor by tensor in the
order of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import as_numpy, raise_if_nonfinite, wide
from mpfast.checkpoints import Checkpoint, Layer, prefetched, read_layer
from mpfast.models.budget_row import along_inputs, from_inputs

__all__ = ["GlobalCut", "LayerCuts", "MaskPlan", "Pattern", "stored_rows"]


class MaskPlan(Protocol):
    """Gives out masks."""

    def mask(self, layer: Layer, rows: NDArray[Any], keep: NDArray[np.bool_]) -> None:
        """Write the mask of the next layer, whose weights ``rows`` are, into ``keep`` of the same shape."""


def stored_rows(tensor: Any, layer: Layer) -> NDArray[Any]:
    """Return a tensor of a checkpoint as contiguous rows of its stored bits (bfloat16 as uint16)."""
    if isinstance(tensor, np.ndarray) and (layer.dtype == "bfloat16" or tensor.dtype.name == layer.dtype):
        array = tensor
    else:
        array, _ = as_numpy(tensor, name=layer.name)
    return np.ascontiguousarray(array).reshape(array.shape[0], -1)


def _matrix(rows: NDArray[Any], layer: Layer) -> _core.Matrix:
    bits = rows.view(np.uint16) if layer.dtype == "bfloat16" else rows
    return _core.Matrix(bits, layer.dtype)


def _raise_if_bad(found: tuple[int, int, int] | None, layer: Layer, rows: NDArray[Any]) -> None:
    if found is not None:
        _, count, first = found
        index = np.unravel_index(first, layer.tensor_shape)
        raise_if_nonfinite(layer.name, count, tuple(int(i) for i in index))


class GlobalCut:
    """The ``pruned`` entries of smallest |w| * scale of all layers together go; as `mpfast.masks.magnitude`.

    Reads the weights twice or three times, and once more for the masks.
    """

    def __init__(
        self, checkpoint: Checkpoint, layers: Sequence[Layer], scales: Sequence[float], pruned: int, threads: int
    ) -> None:
        self._scales = {layer.name: float(scale) for layer, scale in zip(layers, scales, strict=True)}
        self._threads = threads
        storage = [(layer.dtype, self._scales[layer.name]) for layer in layers]
        self._search = _core.CutSearch(sum(layer.size for layer in layers), pruned, storage)
        while not self._search.done:
            for layer, _ in zip(layers, prefetched((layer.file_name for layer in layers), checkpoint), strict=True):
                rows = stored_rows(read_layer(checkpoint, layer), layer)
                found = self._search.count(_matrix(rows, layer), self._scales[layer.name], threads)
                _raise_if_bad(found, layer, rows)
                checkpoint.release(layer.file_name)
            self._search.narrow()

    def mask(self, layer: Layer, rows: NDArray[Any], keep: NDArray[np.bool_]) -> None:
        self._search.write(_matrix(rows, layer), self._scales[layer.name], keep, self._threads)


class LayerCuts:
    """In each layer, the given number of entries of smallest magnitude goes."""

    def __init__(self, pruned: dict[str, int], threads: int) -> None:
        self._pruned = pruned
        self._threads = threads

    def mask(self, layer: Layer, rows: NDArray[Any], keep: NDArray[np.bool_]) -> None:
        found = _core.prune_smallest([_matrix(rows, layer)], [1.0], [keep], self._pruned[layer.name], self._threads)
        _raise_if_bad(found, layer, rows)


class Pattern:
    """The n largest of every m consecutive entries along the inputs stay."""

    def __init__(self, n: int, m: int, threads: int) -> None:
        self._n = n
        self._m = m
        self._threads = threads

    def mask(self, layer: Layer, rows: NDArray[Any], keep: NDArray[np.bool_]) -> None:
        turned = along_inputs(rows.reshape(layer.tensor_shape), layer.input_axes)
        if np.shares_memory(turned, rows):
            found = _core.keep_largest_of_groups([_matrix(rows, layer)], [keep], self._n, self._m, self._threads)
            _raise_if_bad(found, layer, rows)
            return
        kept = np.empty(turned.shape, np.bool_)
        found = _core.keep_largest_of_groups([_matrix(turned, layer)], [kept], self._n, self._m, self._threads)
        if found is not None:
            bad = np.flatnonzero(~np.isfinite(wide(rows, layer.dtype)))
            raise_if_nonfinite(
                layer.name, found[1], tuple(int(i) for i in np.unravel_index(bad[0], layer.tensor_shape))
            )
        keep[...] = from_inputs(kept, layer.tensor_shape, layer.input_axes).reshape(keep.shape)
