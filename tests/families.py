"""Matrices with a known structure, and independent references for them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FAMILIES = ("gauss", "spikes40", "one_huge_spike", "lognormal_columns", "student_t3", "power_law")


def family(name: str, shape: tuple[int, int], seed: int) -> Array:
    """One draw of a family of numerics.md, section 2: noise of unit variance plus what the name says."""
    m, n = shape
    rng = np.random.default_rng(seed)
    # Size of a unit-variance noise matrix's critical signal: spikes below it drown in the bulk.
    unit = (m * n) ** 0.25
    if name == "student_t3":
        return rng.standard_t(3, shape)
    W = rng.standard_normal(shape)
    if name == "gauss":
        return W
    if name == "spikes40":
        return W + low_rank(shape, np.linspace(1.5, 20, 40) * unit, rng)
    if name == "one_huge_spike":
        return W + low_rank(shape, np.array([1000 * unit]), rng)
    if name == "lognormal_columns":
        return W * np.exp(0.5 * rng.standard_normal(n))
    if name == "power_law":
        return W + low_rank(shape, 30 * unit * np.arange(1, 201) ** -1.0, rng)
    raise ValueError(name)


def low_rank(shape: tuple[int, int], values: Array, rng: np.random.Generator) -> Array:
    u = np.linalg.qr(rng.standard_normal((shape[0], len(values))))[0]
    v = np.linalg.qr(rng.standard_normal((shape[1], len(values))))[0]
    return (u * values) @ v.T


def singular_values(W: Array) -> Array:
    return np.linalg.svd(np.asarray(W, dtype=np.float64), compute_uv=False)


def bfloat16_bits(W: Array) -> NDArray[np.uint16]:
    """Bits of W rounded towards zero to bfloat16."""
    return (np.ascontiguousarray(W, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)


def from_bfloat16_bits(bits: NDArray[np.uint16]) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
