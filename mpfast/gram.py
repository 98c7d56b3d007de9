"""The fused Gram product: ``W^T (W X)`` in one pass over W."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpfast import _core
from mpfast.arrays import as_matrix, like, raise_if_nonfinite

__all__ = ["gram_product"]


def gram_product(W: Any, X: Any, *, side: str = "auto", threads: int | None = None) -> Any:
    """Multiply ``W^T (W X)``, or ``W (W^T X)``, reading W once in the type it is stored in.

    Parameters
    ----------
    W
        2-D real array of any framework, shape (m, n); float64, float32, float16 or bfloat16, any strides.
    X
        Array of shape (n, b) for ``side="right"`` or (m, b) for ``side="left"``; one-dimensional is b = 1. Wide blocks
        are cut into blocks of 32 columns, one pass over W each.
    side
        ``"right"``: W^T (W X). ``"left"``: W (W^T X). ``"auto"``: the smaller Gram operator, right when m >= n.
    threads
        Number of threads; default every core this process may use. The result does not depend on it.

    Returns
    -------
    Z
        Same shape as X, in W's framework; float64 when W is, else float32. Products and sums are in that precision.

    Raises
    ------
    ValueError
        A shape does not fit, or W has non-finite entries.
    TypeError
        W or X is not a real floating-point array.

    Examples
    --------
    >>> import numpy as np, mpfast
    >>> W = np.arange(6.0).reshape(3, 2)
    >>> mpfast.gram_product(W, np.eye(2))
    array([[20., 26.],
           [26., 35.]])
    """
    if side not in ("auto", "right", "left"):
        raise ValueError(f"gram_product(): side must be 'auto', 'right' or 'left', not {side!r}")
    matrix = as_matrix(W, function="gram_product")
    rows, cols = matrix.shape
    if side == "auto":
        side = "right" if rows >= cols else "left"
    length = cols if side == "right" else rows
    dtype = np.float64 if matrix.dtype == "float64" else np.float32
    x = np.asarray(X)
    if x.dtype.kind != "f":
        raise TypeError(f"gram_product(): X has dtype {x.dtype}; cast it to a real floating-point type")
    if x.ndim not in (1, 2) or x.shape[0] != length or x.size == 0:
        raise ValueError(
            f"gram_product(): X must have shape ({length}, b) for side={side!r} of a {rows} x {cols} matrix, "
            f"not {x.shape}"
        )
    block = np.ascontiguousarray(np.atleast_2d(x.T), dtype=dtype)
    z = np.empty_like(block)
    for first in range(0, len(block), 32):
        part, _, nonfinite, row, col = _core.gram_product(matrix, block[first : first + 32], side, threads or 0)
        raise_if_nonfinite("gram_product", "W", nonfinite, (row, col))
        z[first : first + 32] = part
    return like(z[0] if x.ndim == 1 else np.ascontiguousarray(z.T), W)
