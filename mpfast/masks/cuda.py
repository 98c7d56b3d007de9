"""Weights in GPU memory, as `mpfast.masks` sees them: their matrices for the native module, and their masks."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import address_of, check_matrix, cuda_backend, device_matrix, empty_like

if TYPE_CHECKING:
    from mpfast import _cuda


class DeviceLayer:
    """One weight array on a GPU; its mask comes back there."""

    def __init__(self, weight: Any, name: str, out: Any = None) -> None:
        self.weight = weight
        self.name = name
        self.shape = tuple(int(n) for n in weight.shape)
        self.size = math.prod(self.shape)
        rows = weight if len(self.shape) == 2 else weight.reshape(*_as_rows(self.shape))
        check_matrix(tuple(rows.shape), str(weight.dtype).removeprefix("torch."), name)
        self.backend = cuda_backend()
        self.matrix: _cuda.Matrix = device_matrix(rows, self.backend, name=name)
        self.keep = empty_like(weight, mask=True) if out is None else out

    def locate(self, flat: int) -> tuple[int, ...]:
        """Index in the array of the entry with row-major index ``flat``."""
        return tuple(int(i) for i in np.unravel_index(flat, self.shape))

    def mask(self) -> Any:
        """Return the boolean array, on the device."""
        return self.keep


def prune_on_device(
    layers: Sequence[DeviceLayer], scales: Sequence[float], pruned: int
) -> tuple[DeviceLayer, int, tuple[int, ...]] | None:
    """Prune the entries of smallest |w| * scale; or say which layer is not finite, how many entries and the first."""
    backend = layers[0].backend
    found = backend.prune_smallest(
        [layer.matrix for layer in layers], list(scales), [address_of(layer.keep) for layer in layers], pruned
    )
    return None if found is None else (layers[found[0]], found[1], layers[found[0]].locate(found[2]))


def groups_on_device(layer: DeviceLayer, n: int, m: int) -> tuple[int, tuple[int, ...]] | None:
    """Keep the n largest of every m entries along the rows; or say how many entries are not finite, and the first."""
    found = layer.backend.keep_largest_of_groups([layer.matrix], [address_of(layer.keep)], n, m)
    return None if found is None else (found[1], layer.locate(found[2]))


def projection_on_device(
    layer: DeviceLayer, moments: NDArray[np.float64], source: Any, prior: float, n: int, m: int
) -> tuple[int, tuple[int, ...]] | None:
    """Keep those n of every m entries whose loss costs least; or say how many entries are not finite, and the first."""
    where = 0 if source is None else address_of(source)
    found = layer.backend.project_groups(layer.matrix, moments, where, prior, address_of(layer.keep), n, m)
    return None if found is None else (found[1], layer.locate(found[2]))


def entry_std_on_device(weight: Any) -> float:
    """Standard deviation of all entries, in fp64."""
    torch = sys.modules.get("torch")
    is_torch = torch is not None and isinstance(weight, torch.Tensor)
    entries: Any = weight.detach().double() if is_torch else weight.astype(np.float64)
    largest = float(abs(entries).max())
    if largest == 0 or not math.isfinite(largest):
        return 0.0 if largest == 0 else math.nan
    # As on the host: no square overflows at this scale, and deviations do not cancel.
    exponent = math.frexp(largest)[1]
    half = exponent // 2
    entries = entries * 2.0**-half * 2.0 ** (half - exponent)
    deviations = entries - float(entries.mean())
    spread = float((deviations**2).mean()) - float(deviations.mean()) ** 2
    return math.ldexp(math.sqrt(max(spread, 0.0)), exponent)


def _as_rows(shape: tuple[int, ...]) -> tuple[int, int]:
    return (1, -1) if len(shape) < 2 else (-1, shape[-1])
