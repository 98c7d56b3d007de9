"""Low-rank factors of a weight matrix."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpfast.arrays import like
from mpfast.svd import svd

__all__ = ["factor"]


def factor(
    W: Any,
    rank: int | str = "mp_edge",
    *,
    tol: float = 1e-5,
    seed: int = 0,
    threads: int | None = None,
    device: str | None = None,
) -> tuple[Any, Any]:
    """Split W into ``A @ B``, the truncation of its SVD.

    Parameters
    ----------
    W
        2-D real array of any framework, shape (m, n).
    rank
        Number of singular triplets kept, or ``"mp_edge"``: all above ``spectrum(W).edge.sigma_plus``.
    tol, seed, threads, device
        As in `mpfast.svd`.

    Returns
    -------
    A, B
        Shapes (m, r) and (r, n), in the caller's framework; the singular values are shared evenly, so that both
        factors have the same Frobenius norm.

    Raises
    ------
    ValueError
        As `mpfast.svd`; also when no singular value lies above the edge: there is nothing to keep.

    Examples
    --------
    >>> import numpy as np
    >>> from mpfast import lowrank
    >>> W = np.outer(np.arange(30.0), np.ones(40))
    >>> A, B = lowrank.factor(W, 1)
    >>> bool(np.allclose(A @ B, W))
    True
    """
    if isinstance(rank, str):
        if rank != "mp_edge":
            raise ValueError(f"factor(): rank must be an integer or 'mp_edge', not {rank!r}")
        result = svd(W, until="mp_edge", tol=tol, seed=seed, threads=threads, device=device)
        if len(result.s) == 0:
            raise ValueError("factor(): no singular value of W lies above the Marchenko-Pastur edge; give a rank")
    elif not isinstance(rank, (int, np.integer)) or rank < 1:
        raise ValueError(f"factor(): rank must be a positive integer or 'mp_edge', not {rank!r}")
    else:
        result = svd(W, rank, tol=tol, seed=seed, threads=threads, device=device)
    root = np.sqrt(result.s)
    left, right = np.asarray(result.U), np.asarray(result.Vh)
    return like((left * root).astype(left.dtype), W), like((root[:, None] * right).astype(right.dtype), W)
