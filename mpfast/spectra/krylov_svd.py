"""Leading singular triplets by randomized block Krylov iteration."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpfast import _core
from mpfast.arrays import like
from mpfast.operators import Source, gram_memory, open_source
from mpfast.spectra.edge import EdgeFit
from mpfast.spectra.krylov_search import WIDEST, KrylovSearch
from mpfast.spectra.measured import Spectrum
from mpfast.spectra.measurement import measured_spectrum_of
from mpfast.spectra.noise import NoiseProfile
from mpfast.spectra.request import NoiseModel, Request
from mpfast.spectra.rounding import GRAM_RESOLUTION
from mpfast.spectra.triplets import ROUNDING, Basis, Triplets, Wanted, level_of_rounding, triplets
from mpfast.support import (
    ConvergenceWarning,
    InvalidValueError,
    check_tolerance,
    front_door,
    warn_caller,
)

Array = NDArray[np.float64]

__all__ = ["SVD", "svd"]

# A wider block needs fewer passes over W, and more vectors in all. It pays where a pass over eight vectors costs little
# more than over four: with 32 registers, and a matrix that comes from memory, not from a cache, in entries of more than
# 16 bits (those arrive so fast that eight vectors take twice as long as four).
DEFAULT_BLOCK = 4
WIDE_BLOCK = 8
WIDE_FROM = 1 << 23  # entries
NARROW_STORAGE = ("float16", "bfloat16")
# Where a dense eigenproblem, which finds everything, is as fast as a Krylov space: up to this order, or from this
# share of all triplets on.
DENSE_UP_TO = 96
DENSE_SHARE = 0.2
# A tolerance below sixteen fp32 roundings needs fp64 products.
FP32_TOLERANCE = 2.0**-20
# Share of `tol` that one rounding may take at s_k, relative, where a dense problem is solved by the squares, W^T W.
SQUARES_SHARE = 1e-2
# Where a Krylov space has lost the small end to rounding, W itself is decomposed, up to this order.
WHOLE_UP_TO = 1024


@dataclass(frozen=True, eq=False, repr=False)
class SVD:
    """Leading singular triplets; unpacks as ``U, s, Vh``.

    Attributes
    ----------
    U
        Left singular vectors, shape (m, k), in the caller's framework.
    s
        Singular values, descending, shape (k,), NumPy float64.
    Vh
        Right singular vectors, shape (k, n), in the caller's framework.
    residuals
        The larger of ``|| W v_i - s_i u_i ||`` and ``|| W^T u_i - s_i v_i ||``, singular-value scale, shape (k,): of
        the vectors as they are returned, by fp64 products, and ``2^-50 s_1`` for the rounding of those. Each s_i lies
        within its residual of a singular value of W.
    angles
        Bounds of the angles between the vectors and the true ones, radians, shape (k,), as `vectors_tol` has them:
        from the residuals and the gaps between the values, and pi / 2 where nothing is known.
    edge
        The fit whose edge ended the iteration, for ``until="mp_edge"``; else None.
    unmet_tolerance
        What was reached where ``tol`` was not met with the largest basis allowed, or ``vectors_tol``, how many values
        may be rounding, what is missing of ``until="mp_edge"``, and what scales leave that did not settle; empty where
        all is as asked for.
    noise
        The scales of rows and columns where these were taken out: the triplets are those of the scaled matrix, and
        ``diag(row_scale) U diag(s) Vh diag(col_scale)``, over the live rows and columns, approximates W. None where
        the noise is taken for even.
    """

    U: Any
    s: Array
    Vh: Any
    residuals: Array
    angles: Array
    edge: EdgeFit | None = None
    unmet_tolerance: str = ""
    noise: NoiseProfile | None = None

    def __iter__(self) -> Iterator[Any]:
        return iter((self.U, self.s, self.Vh))

    def __repr__(self) -> str:
        size = f"{self.U.shape[0]} x {self.Vh.shape[1]}"
        values = f", s from {self.s[0]:.5g} to {self.s[-1]:.5g}" if len(self.s) else ""
        return f"<SVD of a {size} matrix, {len(self.s)} triplets{values}>"


@front_door
def svd(
    W: Any,
    k: int | None = None,
    *,
    until: str | None = None,
    tol: float = 1e-5,
    vectors_tol: float | None = None,
    block: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    device: str | None = None,
    noise: NoiseModel | Sequence[ArrayLike] = "even",
) -> SVD:
    """Compute the k leading singular triplets, or all above the Marchenko-Pastur edge.

    Parameters
    ----------
    W
        2-D real array of any framework, SciPy sparse matrix or `LinearOperator`, shape (m, n).
    k
        Number of triplets, 1 to min(m, n).
    until
        ``"mp_edge"``: every singular value above ``spectrum(W).edge.sigma_plus``; instead of ``k``.
    tol
        Wanted relative error of every singular value above ``max(m, n) 2^-52 s_1``; what is smaller may be rounding.
    vectors_tol
        Wanted bound of the angle, in radians, between every singular vector and the true one, left and right. Of values
        that ``tol`` does not tell apart the vectors are any basis of their space, and the bound is that of the angle
        between the spaces. Default None: the angles are what values to `tol` leave, about its root. It asks for more
        steps, and may ask for float64 products; a gap to the next value of a share g asks for about ``1 / sqrt(g)`` as
        many. Vectors are returned in the precision of W, so that an angle of a float32 one is hardly below 1e-7.
    block
        Vectors multiplied at a time (1 to 32); default 4, or 8 for matrices of 8 million float32 or float64 entries and
        more in the memory of a machine with AVX-512. With 1, a singular value that occurs twice counts once.
    seed, threads, device
        As in `mpfast.spectrum`.
    noise
        As in `mpfast.spectrum`. Where scales are taken out, triplets and edge are those of the scaled matrix, and
        ``.noise`` has the scales. Vectors are zero in dead rows and columns.

    Returns
    -------
    SVD

    Raises
    ------
    ValueError, TypeError
        As `mpfast.spectrum`; also when neither or both of ``k`` and ``until`` are given.

    Warns
    -----
    ConvergenceWarning
        ``tol`` was not met, with the largest basis allowed or for rounding, or values may be rounding altogether;
        ``residuals`` say what was reached. ``vectors_tol`` was not met, because of rounding or because ``k`` ends
        within a group of values that are not told apart; ``angles`` say what was reached. Scales of rows and columns
        that were to be measured did not settle.

    References
    ----------
    Musco and Musco, "Randomized block Krylov methods for stronger and faster approximate singular value decomposition"
    (2015); Tropp and Webber, arXiv 2306.12418 (2023); for angles Wedin, "Perturbation bounds in connection with
    singular value decomposition" (1972).

    Examples
    --------
    >>> import numpy as np, mpfast
    >>> W = np.diag(np.arange(600.0))[:, :590]
    >>> U, s, Vh = mpfast.svd(W, 3)
    >>> np.round(s, 2)
    array([589., 588., 587.])
    """
    found = leading_triplets(
        W,
        k,
        until=until,
        tol=tol,
        vectors_tol=vectors_tol,
        block=block,
        seed=seed,
        threads=threads,
        device=device,
        noise=noise,
    )
    warn_caller("svd", found.unmet_tolerance, ConvergenceWarning)
    return found


def leading_triplets(
    W: Any,
    k: int | None = None,
    *,
    until: str | None = None,
    tol: float = 1e-5,
    vectors_tol: float | None = None,
    block: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    device: str | None = None,
    noise: NoiseModel | Sequence[ArrayLike] = "even",
) -> SVD:
    """Compute what `svd` does, options as there, without a warning: the result says what was not met."""
    if (k is None) == (until is None):
        raise InvalidValueError("", "give either k, the number of triplets, or until='mp_edge'")
    if until not in (None, "mp_edge"):
        raise InvalidValueError("until", f"must be 'mp_edge', not {until!r}")
    tol = check_tolerance(tol)
    if vectors_tol is not None:
        vectors_tol = check_tolerance(vectors_tol, "vectors_tol")
    if block is not None and not _is_integer_in(block, 1, WIDEST):
        raise InvalidValueError("block", f"must be between 1 and {WIDEST}, not {block!r}")
    request = Request(seed=seed, threads=threads, device=device, noise=noise)
    source = open_source(W, threads=request.thread_count, device=device)
    p = min(source.shape)
    if k is not None and not _is_integer_in(k, 1, p):
        raise InvalidValueError("k", f"must be between 1 and min(W.shape) = {p}, not {k!r}")

    edge, floor, profile = None, 0.0, None
    unmet: list[str] = []
    if until is not None or not isinstance(noise, str) or noise != "even":
        spectrum, source = measured_spectrum_of(source, request)
        profile = spectrum.noise if spectrum.noise is not None and spectrum.noise.model != "even" else None
    if k is not None and k > min(source.shape):
        raise InvalidValueError("k", f"must be at most the {min(source.shape)} live rows or columns, not {k!r}")
    if until is not None:
        edge = spectrum.edge
        floor, lost = _floor(spectrum)
        unmet = [f"of the edge, {spectrum.unmet_tolerance}" if spectrum.unmet_tolerance else "", lost]
    wanted = edge.spikes_above_edge if edge is not None else int(k or 0)
    block = min(block or _default_block(source), p)
    found = _solve(source, Wanted(k, floor, tol, max(wanted, 1), vectors_tol), block, seed, request.thread_count)
    unmet.append("" if profile is None else profile.unconverged)
    unmet.append(f"tol={tol:g} was not met {found.unmet}" if found.unmet else "")
    unmet += [found.unmet_vectors, _lost_in_rounding(found)]
    return replace(_in_the_callers_framework(W, found, edge, profile), unmet_tolerance="; ".join(filter(None, unmet)))


def _lost_in_rounding(found: Triplets) -> str:
    """Say how many values may be rounding, and so are not held to `tol`; nothing where all of these are zeros."""
    level = level_of_rounding(found.s, found.source.shape)
    below = found.s[found.s <= level]
    if not below.any():
        return ""
    lost = len(below)
    return (
        f"{lost} of the {len(found.s)} values may be rounding: they are below "
        f"{level * 2.0**found.source.scale_exponent:.2g}, max(m, n) 2^-52 s_1"
    )


def _floor(spectrum: Spectrum) -> tuple[float, str]:
    """The edge, or what can be told from rounding if that is more; and what is lost by that, if anything."""
    edge = spectrum.edge
    floor = max(edge.sigma_plus, GRAM_RESOLUTION * float(spectrum.ritz.max(initial=0.0)))
    lost = edge.spikes_above_edge - int(np.count_nonzero(spectrum.ritz > floor))
    if lost <= 0 or floor <= edge.sigma_plus:
        return floor, ""
    return floor, (
        f"{lost} singular values above the edge, {edge.sigma_plus:.3g}, are too small beside the largest to be told "
        f"from rounding; those above {floor:.3g} are returned"
    )


def _default_block(source: Source) -> int:
    large = math.prod(source.shape) >= WIDE_FROM and source.dtype not in NARROW_STORAGE
    return WIDE_BLOCK if large and source.device == "cpu" and _core.isa() == "avx512" else DEFAULT_BLOCK


def _is_integer_in(value: Any, low: int, high: int) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and low <= int(value) <= high


def _solve(source: Source, wanted: Wanted, block: int, seed: int, threads: int) -> Triplets:
    """Triplets by the cheapest way that keeps `tol`; the last one tried where none does."""
    p = min(source.shape)
    if p <= DENSE_UP_TO or wanted.expected > DENSE_SHARE * p:
        return _dense(source, wanted, threads)
    precise = source.dtype == "float64" or min(wanted.tol, wanted.vectors_tol or 1.0) < FP32_TOLERANCE
    for double in (True,) if precise else (False, True):
        search = KrylovSearch(source, block, seed, threads, wanted)
        found = triplets(search.source, search.run(precise=double), wanted, threads)
        source = search.source
        # More digits are no help where the space was too small.
        if found.is_as_wanted or search.unmet:
            return found
        if search.precise:
            break
    return _whole(source, wanted, threads) if p <= WHOLE_UP_TO else found


def _dense(source: Source, wanted: Wanted, threads: int) -> Triplets:
    """By the whole Gram matrix, or by all of W where its squares have lost the wanted values."""
    p = min(source.shape)
    values, vectors = _core.symmetric_eigenvectors(source.gram(), threads)
    values, vectors = values[::-1], vectors[::-1]
    count = wanted.count(values, source.scale_exponent)
    if count > 0 and ROUNDING * values[0] > SQUARES_SHARE * wanted.tol * values[count - 1]:
        return _whole(source, wanted, threads)
    beyond = float(max(values[count], 0.0)) if count < len(values) else 0.0
    found = triplets(source, Basis(np.ascontiguousarray(vectors[:count]), np.zeros(count), beyond), wanted, threads)
    return _whole(source, wanted, threads) if found.unmet_vectors and p <= WHOLE_UP_TO else found


def _whole(source: Source, wanted: Wanted, threads: int) -> Triplets:
    """By a decomposition of W itself, in which small values err by a rounding of the largest, not by its square."""
    p = min(source.shape)
    with gram_memory(source.shape):
        return triplets(source, Basis(np.eye(p), np.zeros(p)), wanted, threads)


def _in_the_callers_framework(W: Any, found: Triplets, edge: EdgeFit | None, noise: NoiseProfile | None) -> SVD:
    m, n = found.source.shape
    dtype = np.float64 if found.source.dtype == "float64" else np.float32
    unit = 2.0**found.source.scale_exponent
    u, v = (found.long_side, found.short_side) if m >= n else (found.short_side, found.long_side)
    if noise is not None:
        u, v = _with_dead(u, noise.row_scale), _with_dead(v, noise.col_scale)
    return SVD(
        U=like(np.ascontiguousarray(u.T, dtype=dtype), W),
        s=found.s * unit,
        Vh=like(np.ascontiguousarray(v, dtype=dtype), W),
        residuals=found.residuals * unit,
        angles=found.angles,
        edge=edge,
        noise=noise,
    )


def _with_dead(vectors: NDArray[Any], scale: Array) -> NDArray[Any]:
    """Vectors of the live rows or columns, (count, live), with zeros for the others."""
    live = np.isfinite(scale)
    if live.all():
        return vectors
    whole = np.zeros((len(vectors), len(scale)), dtype=vectors.dtype)
    whole[:, live] = vectors
    return whole
