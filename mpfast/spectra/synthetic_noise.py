"""Noise of uneven rows and columns with signals of known strength: what the scales of rows and columns are measured on.

See ``docs/benchmarks.md``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.spectra.synthetic import critical_signal
from mpfast.support import InvalidValueError, front_door

Array = NDArray[np.float64]

__all__ = ["UNEVEN_FAMILIES", "uneven_family"]

UNEVEN_FAMILIES = (
    *("gauss", "cols", "rows", "both", "blocks", "spread15", "t3", "outliers", "nonsep"),
    *("spikes40", "power", "partly", "localcol"),
)
SMALLEST = 90  # rows and columns that "spikes40" needs


def _haar(side: int, count: int, rng: np.random.Generator) -> Array:
    """Orthonormal columns, (side, count), of the rotation-invariant law."""
    q, r = np.linalg.qr(rng.standard_normal((side, count)))
    vectors: Array = q * np.sign(np.diag(r))
    return vectors


@front_door
def uneven_family(
    name: str, shape: tuple[int, int], seed: int, strength: float | None = None, count: int = 10
) -> Array:
    """One draw: noise with the row and column variances that the name says, and signals.

    Parameters
    ----------
    name
        Noise: ``"gauss"``: even. ``"cols"``, ``"rows"``, ``"both"``: variances exp(N(0, 1)). ``"blocks"``: a third of
        the rows each with variance 1, .49, .09. ``"spread15"``: scales on both sides whose logarithms have a standard
        deviation of .15. ``"t3"``: entries of Student's law with 3 degrees of freedom. ``"outliers"``: columns as in
        ``"spread15"``, four of them of 20 times the scale, and four rows of 5.5 times. ``"nonsep"``: a checkerboard of
        variances 4 and 1, no product.
        Signals in even noise: ``"spikes40"``: 40, 1.3 to 20 times the critical size. ``"power"``: ``8 k^-0.7`` times.
        ``"partly"``: noise as ``"spread15"``, 8 signals in a tenth of the rows, and a tail that sinks below the
        critical size. ``"localcol"``: even noise, and ``count`` signals in a twentieth of the columns, 3 times the
        critical size unless ``strength`` says more.
    shape
        (m, n), both at least 90.
    seed
        Of the draw.
    strength
        Of ``count`` dense signals more, in units of the size that is critical once the scales are taken out.
    count
        How many signals ``strength`` adds; of ``"localcol"``, how many there are.

    Raises
    ------
    ValueError
        The name is none of `UNEVEN_FAMILIES`, or the shape is too small.
    """
    if name not in UNEVEN_FAMILIES:
        raise InvalidValueError("name", f"must be one of {', '.join(UNEVEN_FAMILIES)}, not {name!r}")
    if min(shape) < SMALLEST:
        raise InvalidValueError("shape", f"must have at least {SMALLEST} rows and columns, not {shape}")
    m, n = shape
    # The order of the draws is part of the golden values.
    rng = np.random.default_rng([seed, len(name), m])
    entries = rng.standard_normal(shape)
    x, y = _variances(name, shape, rng)
    if name == "t3":
        entries = rng.standard_t(3, shape) / np.sqrt(3)
    if name == "nonsep":
        tall, wide = (np.arange(side) < side // 2 for side in shape)
        entries *= np.where(tall[:, None] == wide, 2.0, 1.0)
    W: Array = np.sqrt(x)[:, None] * entries * np.sqrt(y) + _own_signal(name, shape, rng)
    if name == "localcol":
        return W + _local_signal(shape, strength or 3.0, count, rng)
    if strength is None:
        return W
    left, right = _haar(m, count, rng), _haar(n, count, rng)
    sizes = np.sqrt((left**2 / x[:, None]).sum(axis=0) * (right**2 / y[:, None]).sum(axis=0))
    signal: Array = (left * (strength * critical_signal(shape) / sizes)) @ right.T
    return W + signal


def _variances(name: str, shape: tuple[int, int], rng: np.random.Generator) -> tuple[Array, Array]:
    m, n = shape
    x, y = np.ones(m), np.ones(n)
    if name in ("cols", "both"):
        y = np.exp(rng.standard_normal(n))
    if name in ("rows", "both"):
        x = np.exp(rng.standard_normal(m))
    if name == "blocks":
        x = np.repeat([1.0, 0.49, 0.09], [m // 3, m // 3, m - 2 * (m // 3)])
    if name in ("spread15", "partly"):
        x = np.exp(0.3 * rng.standard_normal(m))
        y = np.exp(0.3 * rng.standard_normal(n))
    if name == "outliers":
        y = np.exp(0.3 * rng.standard_normal(n))
        y[:4] *= 400
        x[:4] *= 30
    return x, y


def _own_signal(name: str, shape: tuple[int, int], rng: np.random.Generator) -> Array | float:
    m, n = shape
    half, unit = min(shape) // 2, critical_signal(shape)
    U, V = _haar(m, half, rng), _haar(n, half, rng)
    sizes: NDArray[Any]
    if name == "spikes40":
        U, sizes, V = U[:, :40], np.geomspace(20, 1.3, 40), V[:, :40]
    elif name == "power":
        sizes = 8 * np.arange(1, half + 1) ** -0.7
    elif name == "partly":
        local = U[:, :8].copy()
        local[rng.permutation(m)[: int(0.9 * m)]] *= 0.05
        local /= np.linalg.norm(local, axis=0)
        U, sizes = np.hstack([local, U[:, 8:]]), np.r_[np.geomspace(12, 4, 8), 3 * np.arange(1, half - 7) ** -0.5]
    else:
        return 0.0
    signal: Array = (U * (sizes * unit)) @ V.T
    return signal


def _local_signal(shape: tuple[int, int], strength: float, count: int, rng: np.random.Generator) -> Array:
    m, n = shape
    left, right = _haar(m, count, rng), _haar(n, count, rng)
    right[n // 20 :] = 0
    signal: Array = (left * (strength * critical_signal(shape))) @ np.linalg.qr(right)[0].T
    return signal
