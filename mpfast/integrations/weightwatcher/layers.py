"""The layers of a model as WeightWatcher sees them: numbered, and a convolution as a matrix per kernel position."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import as_wide, widened
from mpfast.checkpoints import (
    Checkpoint,
    Difference,
    Layer,
    NameFilter,
    Views,
    open_checkpoint,
    read_layer,
    select_layers,
)
from mpfast.support import MissingKeyError, argument_called

__all__ = ["WatchedLayer", "WatchedModel"]

Array = NDArray[np.float64]

# WeightWatcher takes a fused projection as one matrix.
_VIEWS = Views(qkv="fused")
_WEIGHT = ".weight"
# What it does not see has no number.
_NO_NUMBER = -1


@dataclass(frozen=True)
class WatchedLayer:
    """One row of WeightWatcher's table, before its spectrum.

    Attributes
    ----------
    layer_id : int
        WeightWatcher's number: of the module in a live PyTorch model, from 0; else of the tensor among those whose name
        ends in ``.weight``, from 1. -1 for a tensor of another name, which WeightWatcher does not see.
    name, longname : str
        Of the module; the name of a live model's is its last part.
    layer_type : str
        "dense", "conv1d", "conv2d" or "embedding".
    M, N : int
        The shorter and the longer side of a matrix.
    rf : int
        Number of kernel positions, each a matrix.
    layer : Layer
        Where the weights are.
    """

    layer_id: int
    name: str
    longname: str
    layer_type: str
    M: int
    N: int
    rf: int
    layer: Layer

    @property
    def scale(self) -> float:
        """What WeightWatcher multiplies the weights with: the root of 1/2 for two-dimensional convolutions, else 1."""
        return math.sqrt(0.5) if self.layer_type == "conv2d" else 1.0


class WatchedModel:
    """The layers of a model, in their order, and their matrices when asked for."""

    def __init__(self, model: Any, base: Any = None, include: NameFilter = None, exclude: NameFilter = None) -> None:
        checkpoint: Checkpoint = open_checkpoint(model)
        if base is not None:
            with argument_called("base"):
                checkpoint = Difference(checkpoint, open_checkpoint(base))
        found, self.skipped, _ = select_layers(checkpoint, include, exclude, _VIEWS)
        self._checkpoint = checkpoint
        modules = getattr(model, "named_modules", None)
        self._live = callable(modules)
        named = (name for name, _ in modules()) if callable(modules) else _numbered(checkpoint)
        numbers = {name: number for number, name in enumerate(named, 0 if self._live else 1)}
        self.layers = tuple(self._watched(layer, numbers) for layer in found)

    def _watched(self, layer: Layer, numbers: Mapping[str, int]) -> WatchedLayer:
        longname = layer.name.removesuffix(_WEIGHT)
        window = _window(layer)
        whole: tuple[int, ...] = layer.tensor_shape if window else layer.shape
        sides = [extent for axis, extent in enumerate(whole) if axis not in window]
        return WatchedLayer(
            layer_id=numbers.get(longname, _NO_NUMBER),
            name=longname.rpartition(".")[2] if self._live else longname,
            longname=longname,
            layer_type=_type_of(layer),
            M=min(sides),
            N=max(sides),
            rf=math.prod(layer.tensor_shape[axis] for axis in window),
            layer=layer,
        )

    def called(self, layer: int | str) -> WatchedLayer:
        """Return a layer by its number or one of its names; MissingKeyError where there is none."""
        for one in self.layers:
            if layer == one.layer_id if isinstance(layer, int) else layer in (one.longname, one.name, one.layer.name):
                return one
        known = ", ".join(f"{one.layer_id} ({one.longname})" for one in self.layers[:3])
        more = " ..." if len(self.layers) > 3 else ""
        raise MissingKeyError(
            "layer", f"{layer!r} is none of the {len(self.layers)} layers", f"there are {known}{more}"
        )

    def matrices(self, watched: WatchedLayer) -> Iterator[Array]:
        """Yield the matrices of a layer one by one, in float64."""
        layer = watched.layer
        tensor = read_layer(self._checkpoint, layer)
        window = _window(layer)
        try:
            if not window:
                part = tensor[layer.index] if layer.index else tensor
                yield _wide(part if tuple(part.shape) == layer.shape else part.reshape(layer.shape), layer)
                return
            for at in np.ndindex(*(layer.tensor_shape[axis] for axis in window)):
                index: list[int | slice] = [slice(None)] * len(layer.tensor_shape)
                for axis, position in zip(window, at, strict=True):
                    index[axis] = position
                yield _wide(tensor[tuple(index)], layer)
        finally:
            self._checkpoint.release(layer.file_name)


def _numbered(checkpoint: Checkpoint) -> Sequence[str]:
    return [info.name.removesuffix(_WEIGHT) for info in checkpoint.tensors if info.name.endswith(_WEIGHT)]


def _window(layer: Layer) -> tuple[int, ...]:
    """Axes of a convolution's tensor that run over the kernel: the last ones or the first, whichever are shorter."""
    dimensions = len(layer.tensor_shape)
    if layer.kind not in ("conv", "conv_transposed") or dimensions < 3:
        return ()
    shape = layer.tensor_shape
    return tuple(range(2, dimensions) if sum(shape[:2]) >= sum(shape[-2:]) else range(dimensions - 2))


def _type_of(layer: Layer) -> str:
    if layer.kind in ("conv", "conv_transposed"):
        return f"conv{max(1, len(layer.tensor_shape) - 2)}d"
    return "embedding" if layer.kind == "embedding" else "dense"


def _wide(matrix: Any, layer: Layer) -> Array:
    if layer.dtype == "bfloat16" and isinstance(matrix, np.ndarray) and matrix.dtype == np.uint16:
        return widened(matrix).astype(np.float64)  # a reader's raw bits
    return as_wide(matrix, name=layer.name)
