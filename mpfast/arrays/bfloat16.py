"""bfloat16 by its bits, uint16: NumPy has no such type."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["narrowed", "widened"]


def widened(bits: NDArray[Any]) -> NDArray[np.float32]:
    """Return the numbers that the bits stand for.

    Examples
    --------
    >>> widened(np.array([0x3F80, 0xC000], np.uint16))
    array([ 1., -2.], dtype=float32)
    """
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrowed(values: NDArray[Any]) -> NDArray[np.uint16]:
    """Return the bits of the nearest bfloat16 numbers, ties to even; NaN stays NaN.

    Examples
    --------
    >>> [hex(bits) for bits in narrowed(np.array([1.0, -2.0, 1.00390625, 1.01171875]))]
    ['0x3f80', '0xc000', '0x3f80', '0x3f82']
    """
    single = np.ascontiguousarray(values, dtype=np.float32)
    bits = single.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(single), bits >> 16 | 0x40, rounded).astype(np.uint16)
