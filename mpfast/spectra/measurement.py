"""The function `mpfast.spectrum`: which model of the noise, and what is measured for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from numpy.typing import ArrayLike

from mpfast.operators import Source, open_source
from mpfast.spectra.edge import fitted_variance
from mpfast.spectra.estimate import Estimate
from mpfast.spectra.measured import Spectrum
from mpfast.spectra.noise import FEWEST_VALUES, SETTLED, Energies, NoiseProfile, edge_shift_of, live_sides
from mpfast.spectra.output_spectrum import output_spectrum
from mpfast.spectra.request import NoiseModel, Request, SpectrumMethod
from mpfast.spectra.rounding import check_range
from mpfast.spectra.uneven import Measured, measured_under, measured_with
from mpfast.support import ConvergenceWarning, InvalidValueError, front_door, warn_caller

__all__ = ["BothModels", "measured_both", "measured_spectrum", "measured_spectrum_of", "spectrum"]


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
    noise: NoiseModel | Sequence[ArrayLike] = "even",
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
        ``"lanczos"``: block Lanczos quadrature, a dozen passes over W. ``"auto"``: exact up to p = 384 or where it is
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
    noise
        ``"even"``: one scale for all entries; the fit warns where the energies of rows and columns say otherwise.
        ``"uneven"``: scales of rows and columns are measured and taken out, in up to three rounds: values, edge and
        variance are those of ``W / (row_scale x col_scale)``, and ``.noise`` has the scales (`NoiseProfile`).
        ``"auto"``: ``"uneven"`` where that would move the edge by 1 % or where rows or columns are dead, else to the
        bit ``"even"``; ``"even"`` also below 64 singular values, and where nobody sees the entries. A pair
        ``(row_scale, col_scale)``, shapes (m,) and (n,): scales that are known, positive, infinite for rows and columns
        to leave out.

    Returns
    -------
    Spectrum

    Raises
    ------
    ValueError
        W is empty, not 2-D, or has non-finite entries; an option is out of range; nobody sees the entries whose scales
        are to be measured, or their squares are no float64; `inputs` is of another number of inputs, not symmetric, not
        finite or has, beyond rounding, a negative eigenvalue.
    TypeError
        W or `inputs` is complex, integer, boolean or an object array.

    Warns
    -----
    ConvergenceWarning
        ``tol`` was not met within the budget, or scales of rows and columns that were to be measured did not settle;
        the message says what was reached.

    References
    ----------
    Ubaru, Chen, Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature" (2017); Abi Younes, Ding,
    Trogdon, arXiv 2504.03066 (2025). For uneven noise Landa and Kluger, arXiv 2306.11263, who find the scales from all
    singular vectors; here they come from energies.

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
        W,
        inputs=inputs,
        method=method,
        tol=tol,
        probes=probes,
        steps=steps,
        seed=seed,
        threads=threads,
        device=device,
        noise=noise,
    )
    warn_caller("spectrum", found.unconverged, ConvergenceWarning)
    return found


def measured_spectrum(W: Any, *, inputs: Any = None, **options: Any) -> Spectrum:
    """Measure a spectrum as `spectrum` does, options as there, without a warning: the result says what was not met.

    The second moment of the inputs may also come as its `InputRoot`.
    """
    request = Request(**options)
    source = open_source(W, threads=request.thread_count, device=request.device)
    if inputs is None:
        return measured_spectrum_of(source, request).spectrum
    if request.noise != "even":
        raise InvalidValueError("noise", "is about the entries of W, and inputs= about its outputs", "give one of them")
    return output_spectrum(source, inputs, request)


def measured_spectrum_of(source: Source, request: Request) -> Measured:
    """Measure the spectrum of an open source as requested; also whose it is, where scales are taken out."""
    if not isinstance(request.noise, str):
        return measured_with(source, request, request.noise)
    estimate = Estimate(source, request)
    if request.noise == "even":
        return Measured(_as_even(estimate.finished, estimate.energies), source)
    found = estimate.energies
    if found is None and request.noise == "uneven":
        check_range(estimate.look)
        raise InvalidValueError(
            "noise='uneven'",
            "needs the energies of rows and columns, but nobody sees the entries of W",
            "give the scales, if they are known",
        )
    if found is None or not found.rows.any() or (request.noise == "auto" and _is_even(found)):
        return Measured(_as_even(estimate.finished, found), source)
    return measured_under(estimate, request, found)


class BothModels(NamedTuple):
    """A spectrum as that of even noise, and as that of the noise that the energies tell of."""

    even: Spectrum
    told: Spectrum


def measured_both(W: Any, **options: Any) -> BothModels:
    """Measure with ``noise="even"`` and ``noise="auto"``, one spectrum where these agree; options as `spectrum`."""
    request = Request(**options, noise="auto")
    source = open_source(W, threads=request.thread_count, device=request.device)
    estimate = Estimate(source, request)
    found = estimate.energies
    if found is None or _is_even(found):
        even = _as_even(estimate.finished, found)
        return BothModels(even, even)
    told = measured_under(estimate, request, found).spectrum
    return BothModels(_as_even(estimate.finished, found), told)


def _is_even(found: Energies) -> bool:
    """Whether no scales are needed: too few singular values to tell, or energies that hardly differ, none of them 0."""
    if not found.rows.any() or min(len(found.rows), len(found.columns)) < FEWEST_VALUES:
        return True
    rows, columns = live_sides(found)
    return bool(rows.all() and columns.all()) and edge_shift_of(found) < SETTLED


def _as_even(spectrum: Spectrum, found: Energies | None) -> Spectrum:
    """The spectrum as that of even noise, with what the energies say against that, where they are known."""
    if found is None or not found.rows.any():
        return spectrum
    return replace(spectrum, noise=NoiseProfile.even(found, fitted_variance(spectrum)))
