"""Low-rank factors of a weight matrix, and the matrix without its noise."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import as_numpy, like, on_host, wide
from mpfast.spectra.edge import EdgeFit
from mpfast.spectra.krylov_svd import leading_triplets
from mpfast.spectra.measurement import measured_spectrum
from mpfast.spectra.shrinkage import LOSSES, optimal_threshold, shrink
from mpfast.support import ConvergenceWarning, InvalidValueError, front_door, thread_count, warn_caller

__all__ = ["RULES", "denoise", "factor"]

#: What `denoise` may do with the singular values.
RULES = ("edge", "threshold", "optimal", *LOSSES)


class NothingAboveEdgeError(InvalidValueError):
    """No singular value lies above the Marchenko-Pastur edge: there is no signal to keep."""


def check_options(rank: Any, shrinkage: str | None) -> int | str:
    """Return the rank as `factor` takes it, a Python integer or "mp_edge"; ValueError if an option is out of range."""
    if shrinkage is not None and shrinkage not in LOSSES:
        raise InvalidValueError("shrinkage", f"must be None or one of {', '.join(LOSSES)}, not {shrinkage!r}")
    if isinstance(rank, str) and rank == "mp_edge":
        return rank
    if not isinstance(rank, (int, np.integer)) or isinstance(rank, bool) or rank < 1:
        raise InvalidValueError("rank", f"must be a positive integer or 'mp_edge', not {rank!r}")
    return int(rank)


@front_door
def factor(
    W: Any,
    rank: int | str = "mp_edge",
    *,
    shrinkage: str | None = None,
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
    shrinkage
        ``"frobenius"``, ``"operator"`` or ``"nuclear"``: reduce the singular values by what noise has added; see
        `mpfast.shrink`. Default: keep them.
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
        An option is out of range, or as `mpfast.svd`; also when no singular value lies above the edge: there is nothing
        to keep.

    Warns
    -----
    ConvergenceWarning
        As `mpfast.svd`.

    Examples
    --------
    >>> import numpy as np
    >>> from mpfast import lowrank
    >>> W = np.outer(np.arange(30.0), np.ones(40))
    >>> A, B = lowrank.factor(W, 1)
    >>> bool(np.allclose(A @ B, W))
    True
    """
    left, right, unmet = factors(W, rank, shrinkage=shrinkage, tol=tol, seed=seed, threads=threads, device=device)
    warn_caller("factor", unmet, ConvergenceWarning)
    return left, right


def factors(
    W: Any,
    rank: int | str = "mp_edge",
    *,
    shrinkage: str | None = None,
    tol: float = 1e-5,
    seed: int = 0,
    threads: int | None = None,
    device: str | None = None,
) -> tuple[Any, Any, str]:
    """Return what `factor` does, options as there, and in place of a warning what was not met; empty if all was."""
    wanted = check_options(rank, shrinkage)
    if isinstance(wanted, str):
        result = leading_triplets(W, until="mp_edge", tol=tol, seed=seed, threads=threads, device=device)
        if len(result.s) == 0:
            raise NothingAboveEdgeError(
                "", "no singular value of W lies above the Marchenko-Pastur edge", "give a rank"
            )
    else:
        shape = tuple(getattr(W, "shape", ()))
        if len(shape) == 2 and 0 < (largest := min(shape)) < wanted:
            raise InvalidValueError("rank", f"must be at most min(W.shape) = {largest}, not {wanted}")
        result = leading_triplets(W, wanted, tol=tol, seed=seed, threads=threads, device=device)
    s, unmet = result.s, result.unmet_tolerance
    if shrinkage is not None:
        edge = result.edge
        if edge is None:
            spectrum = measured_spectrum(W, seed=seed, threads=threads, device=device)
            edge, unmet = spectrum.edge, unmet or spectrum.unmet_tolerance
        s = shrink(s, edge.variance, W.shape, loss=shrinkage)
    root = np.sqrt(s)
    left, right = on_host(result.U), on_host(result.Vh)
    return like((left * root).astype(left.dtype), W), like((root[:, None] * right).astype(right.dtype), W), unmet


@front_door
def denoise(W: Any, rule: str = "frobenius", *, bulk: float = 0.0, seed: int = 0, threads: int | None = None) -> Any:
    """Return W without the part of it that looks like noise.

    Only the singular triplets above the edge are computed, however large W is.

    Parameters
    ----------
    W
        2-D real array of any framework, in host memory.
    rule
        Which singular values stay: ``"edge"``, those above the Marchenko-Pastur edge; ``"threshold"``, above the
        Tracy-Widom corrected edge; ``"optimal"``, above Gavish and Donoho's hard threshold. Or those above the edge,
        shrunk so that the loss is least: ``"frobenius"``, ``"operator"``, ``"nuclear"``.
    bulk
        What the other singular values are multiplied with: 0 drops them, 0.5 halves them.
    seed, threads
        As in `mpfast.svd`.

    Returns
    -------
    array
        Of the shape of W, in the caller's framework; float32 where W is stored in 16 bits.

    Raises
    ------
    ValueError
        An option is out of range, or as `mpfast.svd`.

    Warns
    -----
    ConvergenceWarning
        As `mpfast.svd`.

    References
    ----------
    Gavish and Donoho, arXiv 1305.5870 and 1405.7511.
    """
    if rule not in RULES:
        raise InvalidValueError("rule", f"must be one of {', '.join(RULES)}, not {rule!r}")
    if not 0 <= bulk <= 1:
        raise InvalidValueError("bulk", f"must lie in [0, 1], not {bulk!r}")
    array, dtype = as_numpy(W)
    result = leading_triplets(array if dtype != "bfloat16" else W, until="mp_edge", seed=seed, threads=threads)
    warn_caller("denoise", result.unmet_tolerance, ConvergenceWarning)
    edge = result.edge
    assert edge is not None, "leading_triplets(until='mp_edge') says which fit ended it"
    kept = _after(rule, result.s, edge, array.shape)
    U, Vh = (on_host(vectors).astype(np.float64) for vectors in (result.U, result.Vh))
    # A value that the rule drops although it is above the edge is one of the bulk.
    change = np.where(kept > 0, kept, bulk * result.s) - bulk * result.s
    changed = bulk * wide(array, dtype) + _core.dense_product(U * change, Vh, thread_count(threads))
    return like(changed.astype(np.float32 if dtype in ("bfloat16", "float16") else array.dtype), W)


def _after(rule: str, s: NDArray[np.float64], edge: EdgeFit, shape: tuple[int, int]) -> NDArray[np.float64]:
    if rule in LOSSES:
        return shrink(s, edge.variance, shape, loss=rule)
    levels = {
        "edge": edge.sigma_plus,
        "threshold": edge.threshold,
        "optimal": optimal_threshold(shape, variance=edge.variance),
    }
    return np.where(s > levels[rule], s, 0.0)
