"""How a spectrum is estimated: which method, how many probes and steps, and when to stop.

The kernels are in the native core; this module holds the policy. See ``docs/numerics.md`` for the measurements behind
the constants.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mpfast.operators import Source, open_source
from mpfast.spectra.edge import SQUARES_RESOLUTION
from mpfast.spectra.measured import Spectrum
from mpfast.spectra.output_spectrum import output_spectrum
from mpfast.spectra.request import Request, SpectrumMethod
from mpfast.spectra.session import MARGIN, Session
from mpfast.spectra.work import LANCZOS_FROM, MAX_PROBES, exact_is_cheaper, exact_is_possible, first_probes
from mpfast.support import ConvergenceWarning, InvalidValueError, front_door, warn_caller

__all__ = ["estimate_spectrum", "measured_spectrum", "spectrum"]


def estimate_spectrum(source: Source, request: Request) -> Spectrum:
    """Measure the spectrum of an open source as requested; its ``threads`` and ``device`` are its own."""
    p = min(source.shape)
    if request.method == "lanczos" and p < LANCZOS_FROM:
        raise InvalidValueError(
            "", f"method='lanczos' needs min(W.shape) >= {LANCZOS_FROM}, got {source.shape}", "use method='exact'"
        )
    wants_exact = request.method == "auto" and not request.fixed and exact_is_cheaper(source, first_probes(p, request))
    if request.method == "exact" or p < LANCZOS_FROM or wants_exact:
        return exact_spectrum(source, request)
    return lanczos_spectrum(source, request)


def exact_spectrum(source: Source, request: Request) -> Spectrum:
    """Every singular value."""
    values, fro_norm, by_squares = source.singular_values()
    return Spectrum.from_values(
        values,
        source.shape,
        dtype=source.dtype,
        device=source.device,
        fro_norm=fro_norm,
        seed=int(request.seed),
        resolution=SQUARES_RESOLUTION if by_squares else None,
    )


def lanczos_spectrum(source: Source, request: Request) -> Spectrum:
    """Block Lanczos quadrature, grown until the requested accuracy holds."""
    p = min(source.shape)
    probes = int(request.probes) if request.probes is not None else first_probes(p, request)
    session = Session(source, request, precise=False)
    session.add_probes(probes)
    if session.needs_double():
        session = Session(session.source, request, precise=True)
        session.add_probes(probes)

    if request.method == "auto" and session.values_repeat() and exact_is_possible(source):
        return exact_spectrum(session.source, request)
    while True:
        if request.steps is None:
            session.settle()
        if request.method == "auto" and session.shows_zeros() and exact_is_possible(source):
            return exact_spectrum(session.source, request)
        result = session.spectrum()
        if result.values is not None:
            return result
        if session.hides_values():
            return replace(
                result,
                unmet_tolerance=f"singular values of the {source.shape[0]} x {source.shape[1]} matrix repeat, and "
                f"after {session.steps} steps not all of the distinct ones were found: the errors may be larger than "
                "reported; method='exact' has none",
            )
        if session.shows_zeros():
            return replace(
                result,
                unmet_tolerance=f"the {source.shape[0]} x {source.shape[1]} matrix is rank deficient, and how many of "
                "its singular values are zero is only estimated: the errors may be larger than reported; "
                "method='exact' has none",
            )
        # The level of rounding is what it is: further probes do not lower it.
        if request.fixed or result.edge.sigma_plus <= result.rounding:
            return result
        relative_error = result.edge.sigma_plus_error / result.edge.sigma_plus
        if relative_error <= MARGIN * request.tol:
            return result
        more = session.probes_missing(relative_error)
        if request.method == "auto" and exact_is_cheaper(source, more):
            return exact_spectrum(session.source, request)
        more = min(more, MAX_PROBES - session.probes)
        if more < 1 and relative_error <= request.tol:
            return result
        if more < 1:
            return replace(
                result,
                unmet_tolerance=f"tol={request.tol:g} was not met: sigma_plus of the {source.shape[0]} x "
                f"{source.shape[1]} matrix has a relative standard error of {relative_error:.2g} after "
                f"{session.probes} probes and {session.steps} steps; method='exact' gives it without error",
            )
        session.add_probes(more)


@front_door
def spectrum(
    W: Any,
    *,
    inputs: Any = None,
    method: SpectrumMethod = "auto",
    tol: float = 5e-3,
    probes: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    device: str | None = None,
) -> Spectrum:
    """Measure the singular-value distribution of a matrix.

    Parameters
    ----------
    W
        2-D real array of any framework (float64, float32, float16, bfloat16; any strides), shape (m, n); also a SciPy
        sparse matrix, a `LinearOperator` or a Dask array. Never copied as a whole, never modified.
    inputs
        Second moment C of the inputs that W, (out, in), is multiplied with: the mean of ``x x^T``, uncentred, (n, n),
        of any framework. The spectrum is then that of ``W C^(1/2)``: `Spectrum.rank_for_error` says to what rank W can
        be cut for a relative error of its outputs. It has no edge. W is multiplied with by whoever has it, C on the
        host, both in float64, beside a Cholesky factor of C in ``8 n^2`` bytes.
    method
        ``"exact"``: all p = min(m, n) singular values, by the fp64 Gram matrix (O(q p^2), memory 8 p^2 bytes).
        ``"lanczos"``: block Lanczos quadrature, a dozen passes over W. ``"auto"``: exact up to p = 1024 or where it is
        cheaper than meeting ``tol``, else Lanczos.
    tol
        Wanted relative standard error of ``edge.sigma_plus`` (Lanczos): probes and steps grow until it holds. With
        `inputs`, of the ranks for relative errors from 0.01 to 0.5, as a share of p.
    probes, steps
        Fix the work of a Lanczos run instead; then ``tol`` is not looked at.
    seed
        Of the probe vectors. Same seed, same input: the same bits, whatever the number of threads.
    threads
        Number of threads; default every core this process may use, or ``OMP_NUM_THREADS``.
    device
        Where to compute: None, where W lives; ``"cuda"`` or ``"cuda:1"`` sends a host array to a GPU, in pieces when it
        is too large for it; ``"cpu"`` insists on the host.

    Returns
    -------
    Spectrum

    Raises
    ------
    ValueError
        W is empty, not 2-D, or has non-finite entries; an option is out of range; `inputs` is of another number of
        inputs, not symmetric, not finite or has, beyond rounding, a negative eigenvalue.
    TypeError
        W or `inputs` is complex, integer, boolean or an object array.

    Warns
    -----
    ConvergenceWarning
        ``tol`` was not met within the budget; the message says what was reached.

    References
    ----------
    Ubaru, Chen, Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature" (2017); Abi Younes, Ding,
    Trogdon, arXiv 2504.03066 (2025).

    Examples
    --------
    >>> import numpy as np, mpfast
    >>> W = np.random.default_rng(0).standard_normal((300, 400))
    >>> edge = mpfast.spectrum(W).edge
    >>> print(f"{edge.sigma_plus:.1f}", edge.spikes, edge.verdict)
    37.4 0 good

    Inputs that lie in few directions leave few for the outputs:

    >>> x = np.random.default_rng(1).standard_normal((1000, 20)) @ np.random.default_rng(2).standard_normal((20, 400))
    >>> mpfast.spectrum(W, inputs=x.T @ x / 1000).rank_for_error(0.01).rank
    20
    """
    found = measured_spectrum(
        W, inputs=inputs, method=method, tol=tol, probes=probes, steps=steps, seed=seed, threads=threads, device=device
    )
    warn_caller("spectrum", found.unmet_tolerance, ConvergenceWarning)
    return found


def measured_spectrum(W: Any, *, inputs: Any = None, **options: Any) -> Spectrum:
    """Measure a spectrum as `spectrum` does, options as there, without a warning: the result says what was not met.

    The second moment of the inputs may also come as its `InputRoot`.
    """
    request = Request(**options)
    source = open_source(W, threads=request.thread_count, device=request.device)
    return estimate_spectrum(source, request) if inputs is None else output_spectrum(source, inputs, request)
