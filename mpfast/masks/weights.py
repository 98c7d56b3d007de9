"""The arrays that masks are made for, as the core sees them: in host memory or on a GPU, whole or in part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import as_numpy, boolean_mask, has_cuda_backend, is_on_gpu, like, raise_if_nonfinite
from mpfast.masks.cuda import DeviceLayer, prune_on_device
from mpfast.masks.outputs import check_device_mask, host_mask
from mpfast.support import InvalidValueError, MissingKeyError, floor_count

__all__ = [
    "HostLayer",
    "Weights",
    "close_layers",
    "open_layers",
    "prune_count",
    "prune_layers",
    "what_prune_would_protect",
]

Weights = Any | Mapping[str, Any]


class HostLayer:
    """One weight array: its 2-D pieces for the core, and its mask."""

    def __init__(self, weight: Any, name: str, out: Any = None) -> None:
        self.weight = weight
        self.name = name
        self.out = out
        array, self.dtype = as_numpy(weight, name=name)
        if array.size == 0:
            raise InvalidValueError(name, f"is empty: its shape is {array.shape}")
        self.keep: NDArray[np.bool_] = host_mask(out, array, f"out of {name}")
        self.pieces, self.masks = as_rows(array, self.keep)

    def matrices(self) -> list[_core.Matrix]:
        """Pieces for the core."""
        return [_core.Matrix(piece, self.dtype) for piece in self.pieces]

    @property
    def size(self) -> int:
        """Entries of the array."""
        return int(np.prod(self.keep.shape))

    def row_parts(self) -> tuple[NDArray[Any], list[int], NDArray[np.int64]]:
        """Return the entries that `keep` is of, flat; how many there are of each row; how many are pruned already."""
        bits = np.concatenate([np.ascontiguousarray(piece).reshape(-1) for piece in self.pieces])
        rows = self.keep.shape[0] if self.keep.ndim > 1 else 1
        return bits, [self.size // rows] * rows, np.zeros(rows, np.int64)

    def locate(self, piece: int, flat: int) -> tuple[int, ...]:
        """Index in the array of the entry with row-major index ``flat`` in a piece."""
        before = sum(p.size for p in self.pieces[:piece])
        return tuple(int(i) for i in np.unravel_index(before + flat, self.keep.shape))

    def mask(self) -> Any:
        """Return the mask in the caller's framework, or the caller's own array that it was written into."""
        return like(self.keep, self.weight) if self.out is None else self.out


class RestLayer(HostLayer):
    """What an earlier mask kept of an array."""

    def __init__(self, weight: Any, within: Any, name: str) -> None:
        self.weight = weight
        self.name = name
        array, self.dtype = as_numpy(weight, name=name)
        self.within = boolean_mask(within, array.shape, name)
        self.keep = np.empty(int(np.count_nonzero(self.within)), dtype=np.bool_)
        self.pieces, self.masks = [], []
        if self.keep.size:
            self.pieces, self.masks = as_rows(array[self.within], self.keep)

    @property
    def size(self) -> int:
        return int(self.within.size)

    def row_parts(self) -> tuple[NDArray[Any], list[int], NDArray[np.int64]]:
        rows = self.within.reshape(self.within.shape[0] if self.within.ndim > 1 else 1, -1)
        left = np.count_nonzero(rows, axis=1)
        bits = self.pieces[0].reshape(-1) if self.pieces else np.empty(0, np.float64)
        return bits, [int(count) for count in left], (rows.shape[1] - left).astype(np.int64)

    def locate(self, piece: int, flat: int) -> tuple[int, ...]:
        return tuple(int(i) for i in np.argwhere(self.within)[flat])

    def mask(self) -> Any:
        whole = np.zeros(self.within.shape, np.bool_)
        whole[self.within] = self.keep
        return like(whole, self.weight)


def as_rows(array: NDArray[Any], keep: NDArray[np.bool_]) -> tuple[list[NDArray[Any]], list[NDArray[np.bool_]]]:
    """2-D views that cover an array of any dimension in row-major order, and those of its mask; nothing is copied."""
    if array.ndim < 2:
        return [array.reshape(1, -1)], [keep.reshape(1, -1)]
    if array.ndim == 2:
        return [array], [keep]
    rows = array.reshape(-1, array.shape[-1])
    if np.shares_memory(rows, array):
        return [rows], [keep.reshape(-1, array.shape[-1])]
    leading = list(np.ndindex(array.shape[:-2]))
    return [array[i] for i in leading], [keep[i] for i in leading]


def _layer(weight: Any, name: str, out: Any) -> HostLayer | DeviceLayer:
    if is_on_gpu(weight) and has_cuda_backend():
        if out is not None:
            check_device_mask(out, weight, f"out of {name}")
        return DeviceLayer(weight, name, out)
    return HostLayer(weight, name, out)


def open_layers(weights: Weights, within: Any = None, out: Any = None) -> tuple[list[HostLayer | DeviceLayer], bool]:
    """Return the layers of one array or of a mapping, and which of the two it is."""
    mapping = isinstance(weights, Mapping)
    named = {f"weights[{name!r}]": (name, weight) for name, weight in weights.items()} if mapping else {}
    if mapping and not named:
        raise InvalidValueError("weights", "is empty")
    if not mapping:
        named = {"weights": ("", weights)}
    if within is None:
        taken = out if mapping and out is not None else {name: out for name, _ in named.values()}
        missing = [name for name, _ in named.values() if name not in taken]
        if missing:
            raise MissingKeyError("out", f"has no array for {missing[0]!r}")
        return [_layer(weight, label, taken[name]) for label, (name, weight) in named.items()], mapping
    if out is not None:
        raise InvalidValueError("", "out and within exclude each other")
    earlier = within if mapping else {"": within}
    missing = [name for name, _ in named.values() if name not in earlier]
    if missing:
        raise MissingKeyError("within", f"has no mask for {missing[0]!r}")
    return [RestLayer(weight, earlier[name], label) for label, (name, weight) in named.items()], mapping


def what_prune_would_protect(weights: Weights) -> str:
    """Name for a warning the arrays of a state dictionary that `mpfast.prune` leaves dense; empty where there are none.

    Where all are of that kind, they are what is meant.
    """
    # What says which tensor is what takes as long to load as all masks.
    from mpfast.checkpoints import TensorInfo, as_layer, stays_dense

    if not isinstance(weights, Mapping):
        return ""
    kept = {}
    for name, weight in weights.items():
        shape, dtype = tuple(getattr(weight, "shape", ())), str(getattr(weight, "dtype", "")).rpartition(".")[2]
        layer = as_layer(TensorInfo(str(name), shape, dtype))
        if isinstance(layer, str):
            if len(shape) < 2:
                kept[name] = layer
        elif stays_dense(layer.kind):
            kept[name] = "embedding or output head"
    if not kept or len(kept) == len(weights):
        return ""
    name, reason = next(iter(kept.items()))
    others = f" and {len(kept) - 1} more" if len(kept) > 1 else ""
    return f"prunes {name}{others}, which prune() leaves dense ({reason}); pass the matrices that are to be pruned"


def close_layers(layers: list[HostLayer | DeviceLayer], weights: Weights, mapping: bool) -> Any:
    """Return the masks in the form in which the weights were given."""
    if not mapping:
        return layers[0].mask()
    return {name: layer.mask() for name, layer in zip(weights, layers, strict=True)}


def prune_layers(
    layers: Sequence[HostLayer | DeviceLayer], scales: Sequence[float], sparsity: float, threads: int
) -> None:
    """Prune floor(sparsity N) entries of all layers together, those of smallest |w| * scale."""
    there = [layer for layer in layers if isinstance(layer, DeviceLayer)]
    here = [layer for layer in layers if isinstance(layer, HostLayer)]
    if there and here:
        raise InvalidValueError(there[0].name, f"is on a GPU, {here[0].name} is not", "bring them together first")
    if there:
        bad = prune_on_device(there, scales, floor_count(sparsity, sum(layer.size for layer in there)))
        if bad is not None:
            raise_if_nonfinite(bad[0].name, bad[1], bad[2])
        return
    gone = sum(layer.within.size - layer.keep.size for layer in here if isinstance(layer, RestLayer))
    pruned = floor_count(sparsity, gone + sum(layer.keep.size for layer in here)) - gone
    if pruned < 0:
        raise InvalidValueError("", f"{gone} entries are pruned already, more than sparsity={sparsity!r} asks for")
    prune_count(here, scales, pruned, threads)


def prune_count(layers: Sequence[HostLayer], scales: Sequence[float], pruned: int, threads: int) -> None:
    """Prune this many entries of layers in host memory together, those of smallest |w| * scale."""
    matrices, factors, masks, origin = [], [], [], []
    for layer, scale in zip(layers, scales, strict=True):
        for number, (matrix, mask) in enumerate(zip(layer.matrices(), layer.masks, strict=True)):
            matrices.append(matrix)
            factors.append(float(scale))
            masks.append(mask)
            origin.append((layer, number))
    found = _core.prune_smallest(matrices, factors, masks, pruned, threads)
    _raise_if_found(found, origin)


def _raise_if_found(found: tuple[int, int, int] | None, origin: list[tuple[HostLayer, int]]) -> None:
    if found is not None:
        which, count, flat = found
        layer, piece = origin[which]
        raise_if_nonfinite(layer.name, count, layer.locate(piece, flat))
