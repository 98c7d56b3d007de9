"""Weights rounded to integers with scales: by what a layer sees, or each to the nearest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core, reconstruct
from mpfast.arrays import LARGEST, in_storage, raise_if_nonfinite, wide, widened
from mpfast.checkpoints import Checkpoint, Layer, read_layer, stored
from mpfast.models.layer_moments import LayerMoments
from mpfast.models.mask_plans import matrix_of
from mpfast.models.refitting import damping_for
from mpfast.support import InvalidValueError, argument_called, power_near

__all__ = ["IntegerFits", "Integers", "QuantizedLayer"]


@dataclass(frozen=True)
class QuantizedLayer:
    """A matrix that is stored as integers.

    Attributes
    ----------
    name : str
        Its tensor.
    shape : (int, int)
        (out, in).
    weight_error : float
        Squared Frobenius norm of the change of the weights over that of the weights.
    error : float or None
        ``tr (W - V) C (W - V)^T / tr W C W^T``, the mean squared change of its outputs; None without moments.
    heldout_error : float or None
        The same on the last part of the inputs, where all was rounded for the others; None where the inputs were not
        kept apart in parts.
    """

    name: str
    shape: tuple[int, int]
    weight_error: float
    error: float | None = None
    heldout_error: float | None = None


@dataclass(frozen=True, eq=False)
class Integers:
    """What stands for a matrix: ``(codes - 2**(bits - 1)) * scales``, every scale for a group of inputs of a row.

    Attributes
    ----------
    codes : (out, in) array of uint8
    scales : (out, groups) array
        In the type of `IntegerFits`; bits where NumPy lacks it.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[Any]


@dataclass(frozen=True)
class IntegerFits:
    """Rounds matrices.

    Attributes
    ----------
    checkpoint
        Has the weights.
    moments
        Of the inputs of every matrix, one for each; None: every weight is rounded to the nearest.
    bits, group
        Of a code; inputs that share a scale, which divide all.
    damping
        As in `damping_for`.
    threads
        Number of threads.
    scale_type
        Element type of the scales; empty: that of the weights.
    """

    checkpoint: Checkpoint
    moments: LayerMoments | None
    bits: int
    group: int
    damping: float | None
    threads: int
    scale_type: str = ""

    def fitted(self, layer: Layer) -> tuple[QuantizedLayer, Integers]:
        """Round the next matrix."""
        rows = np.ascontiguousarray(stored(read_layer(self.checkpoint, layer), layer.name))
        weights = widened(rows) if layer.dtype == "bfloat16" else rows
        bad = np.argwhere(~np.isfinite(weights))
        if len(bad):
            raise_if_nonfinite(layer.name, len(bad), (int(bad[0][0]), int(bad[0][1])))
        if self.moments is None:
            row, integers = self._nearest(layer, rows, weights)
        else:
            row, integers = self._by_outputs(self.moments, layer, rows, weights)
        self.checkpoint.release(layer.file_name)
        return row, integers

    def _nearest(self, layer: Layer, rows: NDArray[Any], weights: NDArray[Any]) -> tuple[QuantizedLayer, Integers]:
        """Round every weight to the nearest point of a symmetric grid that spans its group."""
        groups = weights.astype(np.float32).reshape(len(weights), -1, self.group)
        scale = np.maximum(-groups.min(axis=2) / self._zero, groups.max(axis=2) / (self._zero - 1))
        scale[scale == 0] = 1
        scales = self._scales(scale, weights, layer)
        integers = Integers(self._codes(weights, wide(scales, self._type_of_scales(layer))), scales)
        return QuantizedLayer(layer.name, layer.shape, _change(rows, self.numbers(integers, layer), layer)), integers

    def _by_outputs(
        self, moments: LayerMoments, layer: Layer, rows: NDArray[Any], weights: NDArray[Any]
    ) -> tuple[QuantizedLayer, Integers]:
        """Round column by column, the later ones making up for it; see `mpfast.reconstruct.quantize`."""
        (part,) = moments.parts(layer)
        factor, others, kept_back = moments.factors(layer, part, partial(damping_for, "obs", 0, self.damping))
        with argument_called(f"the moment of {layer.name}", within="C"), argument_called(layer.name, within="W"):
            fit = self._fit(weights, factor)
            heldout = None if others is None else self._fit(weights, others).heldout(kept_back)
        grid = fit.grid
        assert grid is not None, "quantize makes one"
        scales = self._scales(grid.scale, weights, layer)
        # What was rounded on a scale that was raised has other codes; of the rest none moves by half of one.
        integers = Integers(self._codes(np.asarray(fit.weights), wide(scales, self._type_of_scales(layer))), scales)
        found = self.numbers(integers, layer)
        unit = power_near(float(np.abs(weights).max())), factor.root_unit
        target = matrix_of(rows, layer)
        square = _core.quadratic_error(target, None, factor.moment, unit, self.threads)
        change = _core.quadratic_error(target, matrix_of(found, layer), factor.moment, unit, self.threads)
        error = max(change, 0.0) / square if square > 0 else 0.0
        return QuantizedLayer(layer.name, layer.shape, _change(rows, found, layer), error, heldout), integers

    @property
    def _zero(self) -> int:
        """The code that stands for 0."""
        return 1 << self.bits - 1

    def _fit(self, weights: NDArray[Any], factor: Any) -> reconstruct.Fit:
        return reconstruct.quantize(weights, factor, self.bits, group=self.group, symmetric=True, threads=self.threads)

    def _codes(self, weights: NDArray[Any], scale: NDArray[Any]) -> NDArray[np.uint8]:
        groups = weights.reshape(len(weights), -1, self.group)
        places = np.rint(groups / scale[:, :, None]) + self._zero
        codes: NDArray[np.uint8] = places.clip(0, 2 * self._zero - 1).astype(np.uint8).reshape(weights.shape)
        return codes

    def _scales(self, scale: NDArray[Any], weights: NDArray[Any], layer: Layer) -> NDArray[Any]:
        """Scales in the type that they are stored in: whoever reads them computes with that.

        A group of next to nothing among others has the smallest scale of the type.
        """
        kind = self._type_of_scales(layer)
        bits = in_storage(scale, kind)
        held = wide(bits, kind) > 0
        used = weights.reshape(*scale.shape, -1).any(axis=2)
        if used.any() and (not held[used].any() or scale.max() > LARGEST[kind]):
            raise InvalidValueError(layer.name, f"has scales that {kind} does not hold", "leave it out: exclude=")
        smallest = np.array(1, f"u{bits.itemsize}").view(bits.dtype)
        return np.where(held, bits, smallest)

    def _type_of_scales(self, layer: Layer) -> str:
        return self.scale_type or layer.dtype

    def numbers(self, integers: Integers, layer: Layer) -> NDArray[Any]:
        """Return the weights that integers stand for, in the type of the layer, rounded once."""
        codes = integers.codes.reshape(len(integers.codes), -1, self.group).astype(np.float64)
        scales = wide(integers.scales, self._type_of_scales(layer))[:, :, None]
        return in_storage(((codes - self._zero) * scales).reshape(layer.shape), layer.dtype)


def _change(before: NDArray[Any], after: NDArray[Any], layer: Layer) -> float:
    """The squared Frobenius norm of a change over that of what is changed, both in a type by their bits."""
    target = wide(before, layer.dtype)
    square = float(np.square(target).sum())
    return float(np.square(wide(after, layer.dtype) - target).sum()) / square if square > 0 else 0.0
