"""Independent references: singular values by LAPACK, bfloat16 by its bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def singular_values(W: Array) -> Array:
    return np.linalg.svd(np.asarray(W, dtype=np.float64), compute_uv=False)


def bfloat16_bits(W: Array) -> NDArray[np.uint16]:
    """Bits of W rounded towards zero to bfloat16."""
    return (np.ascontiguousarray(W, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)


def from_bfloat16_bits(bits: NDArray[np.uint16]) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
