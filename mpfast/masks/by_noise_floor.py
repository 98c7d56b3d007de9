"""Masks that keep what is larger than noise would be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mpfast.arrays import as_numpy, is_on_gpu, like, wide
from mpfast.support import ConvergenceWarning, InvalidValueError, front_door, warn_caller

__all__ = ["noise_floor"]


@front_door
def noise_floor(W: Any, delta: float = 0.05, *, variance: float | None = None, seed: int = 0) -> Any:
    """Keep the entries that are larger than noise would be.

    With entries of W being a sparse signal plus independent Gaussian noise of variance v, the threshold
    ``t = sqrt(2 v log(2 m n / delta))`` keeps no entry without signal, and every entry with a signal above ``2 t``,
    with probability ``1 - delta``.

    Parameters
    ----------
    W
        Matrix (m, n) of any framework, or an array that is reshaped to ``(shape[0], -1)``.
    delta
        Probability of any false entry.
    variance
        Of one noise entry; default that of the fitted Marchenko-Pastur bulk, ``spectrum(W).edge.variance``.
    seed
        As in `mpfast.spectrum`.

    Returns
    -------
    mask
        Boolean array of the shape of W.

    Raises
    ------
    ValueError
        `delta` or `variance` is out of range, or as `mpfast.spectrum`.

    Warns
    -----
    ConvergenceWarning
        The variance comes from a spectrum of a larger error than `mpfast.spectrum` has it by default.

    References
    ----------
    Berlyand, Bourdais, Owhadi, Shmalo 2026 (arXiv 2606.02608), theorem on the support of the entries; for Gaussian
    noise a union bound over the m n entries.
    """
    if not 0 < delta < 1:
        raise InvalidValueError("delta", f"must lie in (0, 1), not {delta!r}")
    if variance is not None and not 0 <= variance < math.inf:
        raise InvalidValueError("variance", f"must be a number from 0, not {variance!r}")
    on_gpu = is_on_gpu(W)
    array, dtype = (W, "") if on_gpu else as_numpy(W)
    shape = tuple(array.shape)
    if len(shape) < 2 or 0 in shape:
        raise InvalidValueError("W", f"must be non-empty with at least 2 dimensions, but has shape {shape}")
    if variance is None:
        from mpfast.spectra import measured_spectrum

        found = measured_spectrum(W if len(shape) == 2 else W.reshape(shape[0], -1), seed=seed)
        warn_caller("noise_floor", found.unmet_tolerance, ConvergenceWarning)
        variance = found.edge.variance
    level = math.sqrt(variance) * math.sqrt(2 * math.log(2 * math.prod(shape) / delta))
    if on_gpu:
        return _larger(abs(W), rounded_down(level, str(W.dtype).removeprefix("torch.")))
    # Row by row in float64: the level as the storage type would round it is another one.
    keep = np.empty(shape, dtype=np.bool_)
    for entries, kept in zip(array, keep, strict=True):
        kept[...] = _larger(np.abs(wide(entries, dtype)), level)
    return like(keep, W)


def rounded_down(level: float, dtype: str) -> float:
    """The largest number of a type that is not above ``level``: entries of the type exceed both or neither."""
    if dtype == "float64":
        return level
    kind = np.float16 if dtype == "float16" else np.float32
    rounded = np.asarray(min(level, float(np.finfo(kind).max)), kind)
    if float(rounded) > level:
        rounded = np.nextafter(rounded, np.asarray(0, kind))
    if dtype == "bfloat16":
        rounded = (rounded.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return float(rounded)


def _larger(sizes: Any, level: float) -> Any:
    if not bool((sizes < math.inf).all()):
        raise InvalidValueError("W", "has NaN or infinite entries", "clean it first")
    return sizes > level
