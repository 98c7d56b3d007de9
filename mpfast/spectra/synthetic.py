"""Matrices with a known structure: noise, and noise with a signal of known singular values.

The families on which the estimators are measured; see ``docs/benchmarks.md``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpfast.support import InvalidValueError, front_door

Array = NDArray[np.float64]

__all__ = ["FAMILIES", "critical_signal", "family", "low_rank"]

FAMILIES = ("gauss", "spikes40", "one_huge_spike", "lognormal_columns", "student_t3", "power_law")


def critical_signal(shape: tuple[int, int]) -> float:
    """Singular value ``(m n)^(1/4)`` below which a signal drowns in noise of unit variance."""
    return float((shape[0] * shape[1]) ** 0.25)


def low_rank(shape: tuple[int, int], values: ArrayLike, rng: np.random.Generator) -> Array:
    """Matrix with the given singular values, at most min(shape) of them, and random singular vectors.

    Examples
    --------
    >>> S = low_rank((30, 20), [3.0, 2.0], np.random.default_rng(0))
    >>> np.linalg.svd(S, compute_uv=False)[:3].round(6)
    array([3., 2., 0.])
    """
    values = np.asarray(values, dtype=np.float64)
    u = np.linalg.qr(rng.standard_normal((shape[0], len(values))))[0]
    v = np.linalg.qr(rng.standard_normal((shape[1], len(values))))[0]
    product: Array = (u * values) @ v.T
    return product


@front_door
def family(name: str, shape: tuple[int, int], seed: int) -> Array:
    """One draw: noise of unit variance and what the name says.

    Parameters
    ----------
    name
        ``"gauss"``: nothing else. ``"spikes40"``: 40 spikes, 1.5 to 20 times the critical size. ``"one_huge_spike"``:
        one, 1000 times the critical size. ``"lognormal_columns"``: columns with scales exp(N(0, 1/4)), a continuum
        above the edge. ``"student_t3"``: entries of Student's law with 3 degrees of freedom. ``"power_law"``: 200
        spikes falling like 1/i from 30 times the critical size.
    shape
        (m, n), the shorter side at least 200 for ``"power_law"`` and 40 for ``"spikes40"``.
    seed
        Of the draw.

    Raises
    ------
    ValueError
        The name is none of `FAMILIES`, or the shape has no room for the spikes.
    """
    if name not in FAMILIES:
        raise InvalidValueError("name", f"must be one of {', '.join(FAMILIES)}, not {name!r}")
    rng = np.random.default_rng(seed)
    if name == "student_t3":
        return rng.standard_t(3, shape)
    noise = rng.standard_normal(shape)
    if name == "lognormal_columns":
        return noise * np.exp(0.5 * rng.standard_normal(shape[1]))
    signals = {
        "gauss": np.empty(0),
        "spikes40": np.linspace(1.5, 20, 40),
        "one_huge_spike": np.array([1000.0]),
        "power_law": 30 / np.arange(1, 201),
    }
    if len(signals[name]) > min(shape):
        raise InvalidValueError(f"name={name!r}", f"needs at least {len(signals[name])} rows and columns, not {shape}")
    signal = signals[name] * critical_signal(shape)
    return noise + low_rank(shape, signal, rng) if len(signal) else noise
