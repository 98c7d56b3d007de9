"""Independent references: singular values by LAPACK, bfloat16 by its bits; and a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def singular_values(W: Array) -> Array:
    return np.linalg.svd(np.asarray(W, dtype=np.float64), compute_uv=False)


def root_of(C: Array) -> Array:
    """Symmetric root of a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(C)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def least_rank(values: Array, error: float) -> int:
    """By definition: the first rank whose tail is small enough."""
    squares = values**2
    return next(k for k in range(1, len(values) + 1) if squares[k:].sum() <= error**2 * squares.sum() + 1e-15)


def gaussian(rows: int, cols: int, seed: int = 0) -> Array:
    """Independent entries, others for every shape."""
    return np.random.default_rng([seed, rows, cols]).standard_normal((rows, cols))


def vectors(width: int, dim: int, real: Any, seed: int = 1) -> NDArray[Any]:
    """Blocks of `width` vectors of length `dim`."""
    return np.random.default_rng([seed, width, dim]).standard_normal((width, dim)).astype(real)


def bfloat16_bits(W: Array) -> NDArray[np.uint16]:
    """Bits of W rounded towards zero to bfloat16."""
    return (np.ascontiguousarray(W, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)


def from_bfloat16_bits(bits: NDArray[np.uint16]) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def run_python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run this Python elsewhere than in the sources: it would import those instead of what is installed."""
    options = {"capture_output": True, "text": True, "timeout": 120, "check": False, **options}
    return subprocess.run([sys.executable, *arguments], cwd=tempfile.gettempdir(), **options)
