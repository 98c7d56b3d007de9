"""The weights of one layer in GPU memory, as `mpfast.reconstruct.layer.Layer` has those of the host.

On the device: the columns of optimal brain surgeon with what they choose and round, the refit and the scales of the
rows. What the factors of the second moment are made of comes from the host (`device_factor`), and errors are computed
there, for which the weights are copied when they are asked for.
"""

from __future__ import annotations

import math
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import (
    address_of,
    as_matrix,
    as_numpy,
    boolean_mask,
    check_matrix,
    cuda_backend,
    device_matrix,
    empty_like,
    has_cuda_backend,
    host_copy,
    is_on_gpu,
    on_host,
    raise_if_nonfinite,
)
from mpfast.reconstruct.conjugate_gradients import LARGEST_SCALE, LEAST_SCALE, ROUNDING
from mpfast.reconstruct.device_factor import DeviceFactor
from mpfast.reconstruct.factor import as_factor
from mpfast.reconstruct.fit import Fit, Grid
from mpfast.reconstruct.layer import relative_rows
from mpfast.reconstruct.selection import Selection
from mpfast.support import power_near

if TYPE_CHECKING:
    from mpfast import _cuda

__all__ = ["DeviceSurgery", "stays_on_device"]

# The longest groups that are searched there, exactly.
_LONGEST_GROUP = 16


def stays_on_device(W: Any, pattern: tuple[int, int] | None) -> bool:
    """Whether weights are in GPU memory and there is a backend that refits them there."""
    return is_on_gpu(W) and has_cuda_backend() and (pattern is None or pattern[1] <= _LONGEST_GROUP)


class DeviceSurgery:
    """`mpfast.reconstruct.surgery.Surgery` on the device that the weights are on; they and the mask come back there."""

    def __init__(self, W: Any, C: Any, threads: int) -> None:
        self._given = W
        self._threads = threads
        check_matrix(tuple(W.shape), str(W.dtype).removeprefix("torch."), "W")
        self._backend = cuda_backend()
        self._matrix: _cuda.Matrix = device_matrix(W, self._backend)
        self.shape: tuple[int, int] = self._matrix.shape
        self.factor = as_factor(C, self.shape, threads)
        largest = self._backend.largest_magnitude(self._matrix)
        if not math.isfinite(largest):
            count, first = self._backend.find_nonfinite(self._matrix)
            raise_if_nonfinite("W", count, divmod(first, self.shape[1]))
        self.unit = power_near(largest)
        # Whoever writes the new weights in the place of the old ones may still ask for errors.
        self._target = empty_like(W)
        self._backend.gather(self._matrix, address_of(self._target))
        self._rows: NDArray[np.float32] | None = None
        self._grid: Grid | None = None

    def weigh_rows(self, roots: NDArray[np.float64]) -> None:
        self._rows = relative_rows(roots)

    def columns(
        self,
        *,
        mask: Any = None,
        selection: Selection | None = None,
        grid: tuple[int, int, bool] | None = None,
        again: bool,
    ) -> None:
        # `again` is always provided for: the device keeps the weights as they were beside those under way.
        self._weights = self._backend.LayerWeights(self._matrix, 1 / self.unit, self._rows)
        if mask is not None:
            there = _whole_mask(mask, self._given, self.shape)
            self._weights.take_mask(address_of(there))
        pruned, pattern = selection.request if selection is not None else (None, None)
        found = self._weights.obs_columns(self._moment.upper, pruned, pattern, grid)
        if grid is not None:
            scale, zero = found
            self._grid = Grid(*grid[:2], scale * np.float32(self.unit), zero)

    def finish(self, steps: int) -> None:
        moment, factor = self._moment, self.factor
        if steps > 0 and 0 < self._weights.kept < math.prod(self.shape):
            self._weights.refit(moment.correlations, moment.relative_roots, *moment.leading_part, steps)
        if steps > 0 and (factor.damping > 0 or factor.diagonal > 0):
            limits = LEAST_SCALE, LARGEST_SCALE, ROUNDING
            self._weights.scale_rows(moment.correlations, moment.relative_roots, moment.damping_shares, *limits)

    def fit(self) -> Fit:
        target, stored, mask = self._target, empty_like(self._given), empty_like(self._given, mask=True)
        self._weights.store(address_of(stored), address_of(mask), self.unit)
        if self._grid is None and self._weights.kept == math.prod(self.shape):
            self._backend.gather(self._matrix, address_of(stored))
        return Fit(
            stored,
            mask,
            self.factor.damping,
            self.factor.diagonal,
            self._grid,
            _target=partial(_on_host, target),
            _values=partial(_on_host, stored),
            _masked=partial(_masked, target, mask),
            _factor=self.factor,
            _unit=self.unit,
            _threads=self._threads,
        )

    @property
    def _moment(self) -> DeviceFactor:
        there: DeviceFactor = self.factor.on_devices.setdefault(
            self._matrix.device, DeviceFactor(self.factor, self._matrix.device)
        )
        return there


def _whole_mask(mask: Any, W: Any, shape: tuple[int, int]) -> Any:
    """A boolean mask without gaps: where it is, if that is the device of W, in the framework of W; else on the host."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(W, torch.Tensor) and isinstance(mask, torch.Tensor):
        if mask.device != W.device or mask.dtype != torch.bool or tuple(mask.shape) != shape:
            return np.ascontiguousarray(boolean_mask(mask, shape, "W"))
        return mask.detach().contiguous()
    both_cupy = all(type(array).__module__.split(".")[0] == "cupy" for array in (W, mask))
    if both_cupy and mask.device == W.device and mask.dtype == np.bool_ and mask.shape == shape:
        return sys.modules["cupy"].ascontiguousarray(mask)
    return np.ascontiguousarray(boolean_mask(mask, shape, "W"))


def _on_host(weights: Any) -> _core.Matrix:
    return as_matrix(host_copy(weights))


def _masked(target: Any, mask: Any) -> _core.Matrix:
    """The target, on the host, with zeros where the mask drops."""
    entries, dtype = as_numpy(host_copy(target))
    return _core.Matrix(np.where(on_host(mask), entries, np.zeros((), entries.dtype)), dtype)
