"""Low-rank factors of a weight matrix, and the matrix without its noise."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import SecondMoment, as_numpy, check_matrix, host_copy, like, on_host, parse_device, wide
from mpfast.spectra.edge import EdgeFit
from mpfast.spectra.krylov_svd import leading_triplets
from mpfast.spectra.measurement import measured_spectrum
from mpfast.spectra.principal_outputs import PrincipalOutputs
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
    second_moment: Any = None,
    shrinkage: str | None = None,
    tol: float = 1e-5,
    seed: int = 0,
    threads: int | None = None,
    device: str | None = None,
) -> tuple[Any, Any]:
    """Split W into ``A @ B``, the truncation of its SVD, or the product whose outputs differ least.

    Parameters
    ----------
    W
        2-D real array of any framework, shape (m, n).
    rank
        Number of singular triplets kept, or ``"mp_edge"``: all above ``spectrum(W).edge.sigma_plus``. With a second
        moment a number, as `mpfast.Spectrum.rank_for_error` of ``spectrum(W, inputs=second_moment)`` gives it.
    second_moment
        C, the mean of ``x x^T`` over the inputs x that W is multiplied with, (n, n). The product is then the one that
        changes outputs least, ``tr (W - A B) C (W - A B)^T``, by a full decomposition on the host in float64.
        `mpfast.reconstruct.lowrank` is the same with C damped, for moments of few inputs.
    shrinkage
        ``"frobenius"``, ``"operator"`` or ``"nuclear"``: reduce the singular values by what noise has added; see
        `mpfast.shrink`. Default: keep them. Not with a second moment.
    tol, seed, threads, device
        As in `mpfast.svd`. With a second moment, of these `threads` alone matters.

    Returns
    -------
    A, B
        Shapes (m, r) and (r, n), in the caller's framework; float64 where W is, else float32. The singular values are
        shared evenly, so that both factors have the same Frobenius norm.

    Raises
    ------
    ValueError
        An option is out of range, or as `mpfast.svd`; also when no singular value lies above the edge: there is nothing
        to keep. The second moment is of another number of inputs, not symmetric, or not finite.

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
    if second_moment is not None:
        return _whitened(W, rank, second_moment, shrinkage, thread_count(threads), device)
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
        _check_rank(wanted, tuple(getattr(W, "shape", ())))
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


def _whitened(
    W: Any, rank: int | str, second_moment: Any, shrinkage: str | None, threads: int, device: str | None
) -> tuple[Any, Any]:
    wanted = check_options(rank, shrinkage)
    if isinstance(wanted, str):
        raise InvalidValueError(
            "rank", "must be a number beside second_moment", "take spectrum(W, inputs=second_moment).rank_for_error()"
        )
    if shrinkage is not None:
        raise InvalidValueError("", "shrinkage and second_moment do not go together", "pass one of them")
    if parse_device(device) is not None:
        raise InvalidValueError("device", "has no effect beside second_moment", "leave it out")
    array, dtype = as_numpy(host_copy(W))
    check_matrix(array.shape, dtype, "W")
    _check_rank(wanted, array.shape)
    moment = SecondMoment.of(second_moment, "second_moment", threads)
    if len(moment.diagonal) != array.shape[1]:
        raise InvalidValueError(
            "second_moment",
            f"is of {len(moment.diagonal)} inputs, but W has {array.shape[1]}: its shape is {array.shape}",
        )
    found = PrincipalOutputs(array, dtype, "W", moment.symmetric(), threads).factors(wanted)
    stored = np.float64 if dtype == "float64" else np.float32
    left, right = (like(np.ascontiguousarray(part, stored), W) for part in found)
    return left, right


def _check_rank(rank: int, shape: tuple[int, ...]) -> None:
    if len(shape) == 2 and 0 < (largest := min(shape)) < rank:
        raise InvalidValueError("rank", f"must be at most min(W.shape) = {largest}, not {rank}")


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
