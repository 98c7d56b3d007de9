"""Noise of uneven rows and columns, with signals of known strength: the families the scales are tested on."""

from __future__ import annotations

import numpy as np

FAMILIES = ("gauss", "cols", "rows", "both", "blocks", "spread15", "t3", "outliers", "spikes40", "partly", "localcol")


def haar(side, count, rng):
    q, r = np.linalg.qr(rng.standard_normal((side, count)))
    return q * np.sign(np.diag(r))


def uneven(name, shape, seed, strength=None, count=10):
    """One draw: noise ``sqrt(x_i y_j) E_ij`` and what the name says; ``count`` dense signals of equal strength more.

    The strength is in units of the critical one of the whitened matrix. The order of the draws is part of the golden
    values.
    """
    m, n = shape
    p, critical = min(shape), (m * n) ** 0.25
    rng = np.random.default_rng([seed, len(name), m])
    x, y = np.ones(m), np.ones(n)
    E = rng.standard_normal(shape)
    if name in ("cols", "both"):
        y = np.exp(rng.standard_normal(n))
    if name in ("rows", "both"):
        x = np.exp(rng.standard_normal(m))
    if name == "blocks":
        x = np.repeat([1.0, 0.49, 0.09], [m // 3, m // 3, m - 2 * (m // 3)])
    if name in ("spread15", "partly"):
        x = np.exp(0.3 * rng.standard_normal(m))
        y = np.exp(0.3 * rng.standard_normal(n))
    if name == "t3":
        E = rng.standard_t(3, shape) / np.sqrt(3)
    if name == "outliers":
        y = np.exp(0.3 * rng.standard_normal(n))
        y[:4] *= 400
        x[:4] *= 30
    U, V = haar(m, p // 2, rng), haar(n, p // 2, rng)
    W = np.sqrt(x)[:, None] * E * np.sqrt(y)
    if name == "spikes40":
        W = W + (U[:, :40] * (np.geomspace(20, 1.3, 40) * critical)) @ V[:, :40].T
    if name == "partly":
        few = U[:, :8].copy()
        few[rng.permutation(m)[: int(0.9 * m)]] *= 0.05
        few /= np.linalg.norm(few, axis=0)
        W = W + (few * (np.geomspace(12, 4, 8) * critical)) @ V[:, :8].T
        W = W + (U[:, 8:] * (3 * np.arange(1, p // 2 - 7) ** -0.5 * critical)) @ V[:, 8:].T
    if name == "localcol":
        left, right = haar(m, count, rng), haar(n, count, rng)
        right[n // 20 :] = 0
        return W + (left * ((strength or 3.0) * critical)) @ np.linalg.qr(right)[0].T
    if strength is not None:
        left, right = haar(m, count, rng), haar(n, count, rng)
        sizes = np.sqrt((left**2 / x[:, None]).sum(axis=0)) * np.sqrt((right**2 / y[:, None]).sum(axis=0))
        W = W + (left * (strength * critical / sizes)) @ right.T
    return W
