"""Optimal brain surgeon on one layer and what follows it, where the layer's weights are: on the host or on a GPU."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import boolean_mask
from mpfast.reconstruct.conjugate_gradients import finish, worse_rows
from mpfast.reconstruct.cuda import DeviceSurgery, stays_on_device
from mpfast.reconstruct.fit import Fit, Grid
from mpfast.reconstruct.layer import Layer
from mpfast.reconstruct.selection import Selection, parsed_group

__all__ = ["Surgery", "open_surgery"]


class Surgery(Protocol):
    """One layer; its columns are treated once, and then its weights may be refitted.

    Attributes
    ----------
    shape : tuple of int
        (out, in).
    unit : float
        A power of two near the largest weight.
    """

    shape: tuple[int, int]
    unit: float

    def weigh_rows(self, roots: NDArray[np.float64]) -> None:
        """Multiply the rows, (out,), before their columns are treated: some may lose more than others."""

    def columns(
        self,
        *,
        mask: Any = None,
        selection: Selection | None = None,
        grid: tuple[int, int, bool] | None = None,
        again: bool,
    ) -> None:
        """Drop what a mask drops, or what is to be selected, and round what stays to a grid.

        `grid`: bits, how many weights of a row share one, and whether zero is in its middle.
        `again`: the weights as they were are needed once more, by `finish`.
        """

    def finish(self, steps: int) -> None:
        """Take steps of conjugate gradients, and then scale the rows to suit C undamped; no steps, no change."""

    def fit(self) -> Fit:
        """Return what has become of the weights."""


class HostSurgery:
    """On the host."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self._grid: Grid | None = None
        self.shape, self.unit = layer.shape, layer.unit

    def weigh_rows(self, roots: NDArray[np.float64]) -> None:
        self._layer.weigh_rows(roots)

    def columns(
        self,
        *,
        mask: Any = None,
        selection: Selection | None = None,
        grid: tuple[int, int, bool] | None = None,
        again: bool,
    ) -> None:
        layer = self._layer
        pruned, pattern = selection.request if selection is not None else (None, None)
        if mask is None:
            self._keep = np.ones(layer.shape, np.bool_)
        else:
            self._keep = np.array(boolean_mask(mask, layer.shape, "W"), order="C")
        # What is fitted with a delicate moment may have to be taken back.
        is_delicate = layer.factor.is_delicate
        self._values = layer.start(again=again or is_delicate)
        target = None if grid is None else self._new_grid(*grid)
        _core.obs_columns(self._values, self._keep, layer.factor.upper, pruned, pattern, target, layer.threads)
        if grid is not None and is_delicate:
            self._round_worse_rows(*grid)
        layer.factor.end_columns()

    def _new_grid(
        self, bits: int, width: int, symmetric: bool
    ) -> tuple[int, int, bool, NDArray[np.float32], NDArray[np.float32]]:
        """A grid whose scales and zeros are to be written, and the same as the core has it."""
        rows, cols = self._layer.shape
        scale, zero = np.empty((2, rows, -(-cols // width)), np.float32)
        self._grid = Grid(bits, width, scale, zero)
        return bits, width, symmetric, scale, zero

    def _round_worse_rows(self, bits: int, width: int, symmetric: bool) -> None:
        """Round what the mask keeps of a row to the nearest, with a grid of its own, where that is better."""
        layer, fitted = self._layer, self._grid
        assert fitted is not None
        rounded, keep = layer.weights.copy(), self._keep.copy()
        # With uncorrelated inputs, no weight makes up for another.
        plain = np.eye(layer.shape[1], dtype=np.float32)
        _core.obs_columns(rounded, keep, plain, None, None, self._new_grid(bits, width, symmetric), layer.threads)
        worse = worse_rows(layer, self._values, rounded)
        self._values[worse] = rounded[worse]
        assert self._grid is not None
        fitted.scale[worse], fitted.zero[worse] = self._grid.scale[worse], self._grid.zero[worse]
        self._grid = fitted

    def finish(self, steps: int) -> None:
        finish(self._layer, self._values, self._keep, steps)

    def fit(self) -> Fit:
        return self._layer.fit(self._values, self._keep, self._grid)


def open_surgery(W: Any, C: Any, threads: int, pattern: Any = None) -> Surgery:
    """Check the weights and the moment of a layer, given the pattern that is asked for; errors as `Layer`."""
    if stays_on_device(W, None if pattern is None else parsed_group(pattern)):
        there = DeviceSurgery(W, C, threads)
        if not there.factor.is_delicate:
            return there
        C = there.factor  # the host takes back what rounding has made worse
    return HostSurgery(Layer(W, C, threads))
