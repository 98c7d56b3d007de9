"""Refitted weights in plain NumPy, and the problems that they are tried on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def correlated(inputs: int, samples: int = 2000, seed: int = 0) -> Array:
    """Second moment of inputs with a few strong directions and a decay, as layers have."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((inputs, inputs)) / np.sqrt(np.arange(1, inputs + 1))[:, None]
    X = rng.standard_normal((samples, inputs)) @ mixing
    return X.T @ X / samples


def problem(outputs: int, inputs: int, seed: int = 0) -> tuple[Array, Array]:
    return np.random.default_rng(seed + 1).standard_normal((outputs, inputs)), correlated(inputs, seed=seed)


def damped(C: Array, damping: float = 0.01, diagonal: float = 0.0) -> Array:
    return C + damping * np.diag(C).mean() * np.eye(len(C)) + diagonal * np.diag(np.diag(C))


def upper_factor(H: Array) -> Array:
    """U with U^T U = H^-1, by Cholesky, inverse, Cholesky, as SparseGPT has it."""
    return np.linalg.cholesky(np.linalg.inv(H)).T


def relative_error(W: Array, V: Array, C: Array) -> float:
    D = W - V
    return float(((D @ C) * D).sum() / ((W @ C) * W).sum())


def exact_refit(W: Array, H: Array, keep: Array) -> Array:
    V = np.zeros_like(W)
    for w, v, k in zip(W, V, keep, strict=True):
        v[k] = np.linalg.solve(H[np.ix_(k, k)], (H @ w)[k])
    return V


def scaled_rows(W: Array, V: Array, C: Array) -> Array:
    """Each row of V times what brings it nearest to that of W by C, between 0.5 and 2."""
    image = V @ C
    square = (image * V).sum(axis=1)
    scales = np.divide((image * W).sum(axis=1), square, out=np.ones(len(V)), where=square > 0)
    return V * np.clip(scales, 0.5, 2)[:, None]


def surgeon(
    W: Array, H: Array, *, pruned: int | None = None, keep: Array | None = None, grid: tuple[int, int] | None = None
) -> tuple[Array, Array]:
    """Columns one by one; `pruned` of the first 128 columns at a time, or a mask; a grid of (bits, group)."""
    U, V = upper_factor(H), W.copy()
    cols = W.shape[1]
    keep = np.ones(W.shape, bool) if keep is None else keep.copy()
    scale = zero = np.empty(0)
    for j in range(cols):
        if pruned is not None and j % 128 == 0:
            block = slice(j, min(j + 128, cols))
            count = pruned * block.stop // cols - pruned * j // cols
            score = np.abs(V[:, block] / np.diag(U)[block])
            chosen = np.ones(score.size, bool)
            chosen[np.argsort(score.ravel(), kind="stable")[:count]] = False
            keep[:, block] = chosen.reshape(score.shape)
        after = V[:, j]
        if grid is not None:
            bits, group = grid
            if j % group == 0:
                part = V[:, j : j + group]
                low, high = np.minimum(part.min(axis=1), 0), np.maximum(part.max(axis=1), 0)
                scale = (high - low) / (2**bits - 1)
                zero = np.round(-low / scale)
            after = (np.clip(np.round(after / scale + zero), 0, 2**bits - 1) - zero) * scale
        after = np.where(keep[:, j], after, 0.0)
        lost = (V[:, j] - after) / U[j, j]
        V[:, j:] -= lost[:, None] * U[j, j:]
        V[:, j] = after
    return V, keep
