"""Arrays in the memory of the emulated device: see tests/emulation/README.md."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .references import bfloat16_bits, from_bfloat16_bits

DTYPES = ("float64", "float32", "float16", "bfloat16")


class DeviceArray(np.ndarray):
    """An array that claims to be in device memory, as the emulated device believes."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.ctypes.data, False),
            "strides": self.strides,
            "version": 3,
            "stream": None,
        }

    def __dlpack__(self, **_: Any) -> Any:
        return np.ndarray.__dlpack__(self.view(np.ndarray))

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


def on_device(W: NDArray[Any]) -> Any:
    return W.view(DeviceArray)


def stored(W: NDArray[Any], dtype: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Entries as stored (bfloat16: the bits), and what they are worth."""
    if dtype == "bfloat16":
        bits = bfloat16_bits(W)
        return bits, from_bfloat16_bits(bits)
    entries = W.astype(dtype)
    return entries, entries.astype(np.float64)


def device_matrix(cuda: Any, W: NDArray[Any], dtype: str) -> Any:
    strides = tuple(s // W.itemsize for s in W.strides)
    return cuda.Matrix(W.ctypes.data, dtype, W.shape, strides, 0, 0, W)
