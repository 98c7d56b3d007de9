"""Masks of a model in one form, laid out over its tensors in another: in files, or loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import boolean_mask
from mpfast.checkpoints import Layer, MaskFile
from mpfast.models.name_fit import FittedNames

__all__ = ["FittedMasks"]


class FittedMasks:
    """Masks that the caller has, and which of them each layer of a checkpoint answers to.

    Parameters
    ----------
    masks
        By name of tensor, True = kept; of the same model, in files or loaded.
    layers
        Whole tensors of the checkpoint.

    Raises
    ------
    InvalidValueError
        The shapes of a stack and of an expert in it do not agree.
    """

    def __init__(self, masks: Mapping[str, Any], layers: Sequence[Layer]) -> None:
        self._masks = masks
        self._names = FittedNames({name: _shape_in(masks, name) for name in masks}, layers, "the masks'")
        self._last: tuple[str, NDArray[np.bool_]] = ("", np.empty(0, np.bool_))

    def answers(self, layer: Layer) -> tuple[str, ...]:
        """Return the names of the masks of a layer; none where there is none."""
        return self._names.answers(layer)

    def unanswered(self, layers: Sequence[Layer]) -> set[str]:
        """Return the names of the masks that are not of these layers."""
        return self._names.unanswered(layers)

    def layer_of(self, name: str) -> str:
        """Return the name of the layer that a mask is of: its own one where there is none."""
        return self._names.layer_of(name)

    def mask_of(self, layer: Layer) -> NDArray[np.bool_]:
        """Return the mask of a layer, in its shape; experts of which nothing is said are kept.

        Raises
        ------
        InvalidValueError
            A mask is not boolean, or of another shape.
        """
        if layer.name in self._names.own:
            return self._of_itself(self._names.own[layer.name], layer)
        if layer.name in self._names.places:
            place = self._names.places[layer.name]
            return self._stack(place.key)[place.index]
        kept = np.ones(layer.tensor_shape, np.bool_)
        for place in self._names.pieces[layer.name]:
            part = kept[place.index]
            part[...] = boolean_mask(self._masks[place.key], part.shape, place.key)
        return kept

    def _of_itself(self, key: str, layer: Layer) -> NDArray[np.bool_]:
        shape, turned = layer.stored_shapes
        if shape != turned == _shape_in(self._masks, key):
            return boolean_mask(self._masks[key], turned, layer.name).swapaxes(-1, -2)
        return boolean_mask(self._masks[key], shape, layer.name)

    def _stack(self, key: str) -> NDArray[np.bool_]:
        """Return the mask of a stack, which the experts in it ask for one after the other."""
        if self._last[0] != key:
            self._last = key, boolean_mask(self._masks[key], _shape_in(self._masks, key), key)
        return self._last[1]


def _shape_in(masks: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """Shape of a mask, which of a file need not be read for it; empty of what has none."""
    return masks.shape_of(name) if isinstance(masks, MaskFile) else tuple(getattr(masks[name], "shape", ()))
