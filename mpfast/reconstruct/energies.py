"""How the mean square of a layer's outputs is spread over its directions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import as_wide, check_matrix, raise_if_nonfinite
from mpfast.reconstruct.factor import as_factor
from mpfast.support import front_door, thread_count

__all__ = ["output_energies"]


@front_door
def output_energies(W: Any, C: Any, *, threads: int | None = None) -> NDArray[np.float64]:
    """Squared singular values of ``W H^(1/2)``: what each principal direction adds to the mean square of the outputs.

    Parameters
    ----------
    W
        (out, in), of any framework.
    C
        Second moment of the inputs, (in, in), or a `Factor` of it, whose damping makes it H.
    threads
        Number of threads; the result does not depend on it.

    Returns
    -------
    (min(out, in),) array
        Descending; their sum is ``tr W H W^T``.

    Raises
    ------
    ValueError, TypeError
        As `lowrank`.

    Examples
    --------
    >>> import numpy as np
    >>> from mpfast import reconstruct
    >>> factor = reconstruct.Factor(np.diag([4.0, 1.0]), damping=0)
    >>> output_energies(np.diag([1.0, 3.0]), factor).round(6).tolist()
    [9.0, 4.0]
    """
    team = thread_count(threads)
    weights = as_wide(W)
    check_matrix(weights.shape, "float64", "W")
    rows, cols = weights.shape
    bad = ~np.isfinite(weights)
    if bad.any():
        row, column = np.unravel_index(int(bad.argmax()), bad.shape)
        raise_if_nonfinite("W", int(bad.sum()), (int(row), int(column)))
    factor = as_factor(C, (rows, cols), team)
    # No square overflows in these units.
    unit, scale = float(np.abs(weights).max()) or 1.0, float(factor.damped_diagonal.mean())
    small, damped = weights / unit, factor.damped() / scale
    if rows > cols:  # with W = Q R, those of R H R^T
        _, small = _core.orthonormal_rows(np.ascontiguousarray(small.T), team)
    values = _core.symmetric_eigenvalues(np.ascontiguousarray(small @ damped @ small.T), team)
    energies: NDArray[np.float64] = np.maximum(values[::-1], 0.0) * unit**2 * scale
    return energies
