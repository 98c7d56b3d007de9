"""The fused Gram product: ``W^T (W X)`` in one pass over W."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import as_matrix, as_numpy, has_cuda_backend, is_on_gpu, like, raise_if_nonfinite, widened
from mpfast.operators.cuda import DeviceSource, device_gram_product, open_device_array
from mpfast.operators.dask import DaskOperator, is_dask_array
from mpfast.operators.linear_operator import GramOperator, is_operator
from mpfast.support import InvalidValueError, front_door, thread_count

__all__ = ["gram_product"]


@front_door
def gram_product(W: Any, X: Any, *, side: str = "auto", threads: int | None = None) -> Any:
    """Multiply ``W^T (W X)``, or ``W (W^T X)``, reading W in the type it is stored in.

    Parameters
    ----------
    W
        2-D real array of any framework, shape (m, n); float64, float32, float16 or bfloat16, any strides; in GPU
        memory the GPU multiplies. Also a SciPy sparse matrix, a `LinearOperator` or a Dask array: multiplied by its
        owner in float64.
    X
        Array of any framework, shape (n, b) for ``side="right"`` or (m, b) for ``side="left"``; one-dimensional is
        b = 1. Wide blocks are cut into blocks of 32 columns, one pass over W each.
    side
        ``"right"``: W^T (W X). ``"left"``: W (W^T X). ``"auto"``: the smaller Gram operator, right when m >= n.
    threads
        Number of threads; default every core this process may use. The result does not depend on it.

    Returns
    -------
    Z
        Same shape as X, in W's framework, NumPy's where W is Dask's; float64 when W is float64, sparse, an operator or
        Dask's, else float32. Products and sums are in that precision.

    Raises
    ------
    ValueError
        A shape does not fit, W or X has non-finite entries, or an option is out of range.
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
        raise InvalidValueError("side", f"must be 'auto', 'right' or 'left', not {side!r}")
    count = thread_count(threads)
    source: GramOperator | DaskOperator | _core.Matrix | DeviceSource
    if is_dask_array(W):
        source = DaskOperator(W, count)
    elif is_operator(W):
        source = GramOperator(W)
    elif is_on_gpu(W) and has_cuda_backend():
        source = open_device_array(W, count)
    else:
        source = as_matrix(W)
    rows, cols = source.shape
    if side == "auto":
        side = "right" if rows >= cols else "left"
    if isinstance(source, DeviceSource) and is_on_gpu(X):
        return device_gram_product(source, X, side)
    wide = isinstance(source, (GramOperator, DaskOperator)) or source.dtype == "float64"
    x, vector = _block(X, cols if side == "right" else rows, np.float64 if wide else np.float32, side, source.shape)
    z = np.empty_like(x)
    for first in range(0, len(x), 32):
        block = x[first : first + 32]
        if isinstance(source, (GramOperator, DaskOperator)):
            left = side == "left"
            z[first : first + 32] = source.multiply(source.multiply(block, transpose=left), transpose=not left)
            continue
        if isinstance(source, DeviceSource):
            product = source.backend.gram_product(source.matrix, block, side == "right")
        else:
            product = _core.gram_product(source, block, side, count, norm=False)
        z[first : first + 32], _, nonfinite, row, col = product
        raise_if_nonfinite("W", nonfinite, (row, col))
    return like(z[0] if vector else np.ascontiguousarray(z.T), W)


def _block(X: Any, length: int, dtype: type, side: str, shape: tuple[int, int]) -> tuple[NDArray[Any], bool]:
    """Columns of X as rows, (b, length), in the precision of the products; and whether X was one-dimensional."""
    x, stored = as_numpy(X, name="X")
    if x.ndim not in (1, 2) or x.shape[0] != length or x.size == 0:
        raise InvalidValueError(
            "X", f"must have shape ({length}, b) for side={side!r} of a {shape[0]} x {shape[1]} matrix, not {x.shape}"
        )
    columns = x[:, None] if x.ndim == 1 else x
    if stored == "bfloat16":
        columns = widened(columns)
    with np.errstate(over="ignore"):
        columns = columns.astype(dtype, copy=False)
    bad = np.argwhere(~np.isfinite(columns))
    if len(bad):
        raise_if_nonfinite("X", len(bad), tuple(int(i) for i in bad[0][: x.ndim]))
    return np.ascontiguousarray(columns.T), x.ndim == 1
