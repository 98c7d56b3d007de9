"""How a spectrum is estimated: which method, how many probes and steps, and when to stop.

The kernels are in the native core; this module holds the policy. See ``docs/numerics.md`` for the measurements behind
the constants.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mpfast.operators import Source, energies
from mpfast.spectra.leading import Leading, leading_of_gram, leading_of_session
from mpfast.spectra.measured import Spectrum
from mpfast.spectra.noise import Energies
from mpfast.spectra.request import Request
from mpfast.spectra.rounding import SQUARES_RESOLUTION, has_variance
from mpfast.spectra.session import MARGIN, Session
from mpfast.spectra.work import (
    EXACT_UP_TO,
    LANCZOS_FROM,
    MAX_PROBES,
    exact_is_cheaper,
    exact_is_possible,
    first_probes,
)
from mpfast.support import InvalidValueError, KeptProperty

__all__ = ["Estimate", "takes_all_values"]


# Up to here leading triplets come from the Gram matrix.
GRAM_UP_TO = 1024
# Probes of a run that is only to find strong triplets.
ROUGH_PROBES = 8


class Estimate:
    """One spectrum under way: what a first look says, and the spectrum itself once that is asked for."""

    def __init__(self, source: Source, request: Request) -> None:
        """Begin as requested; the request's ``threads`` and ``device`` are the source's own."""
        p = min(source.shape)
        if request.method == "lanczos" and p < LANCZOS_FROM:
            raise InvalidValueError(
                "", f"method='lanczos' needs min(W.shape) >= {LANCZOS_FROM}, got {source.shape}", "use method='exact'"
            )
        self.source = source
        self._request = request
        self._session = None if takes_all_values(source, request) else _begun(source, request)
        #: Every singular value, or what the first steps say.
        self.look = (
            exact_spectrum(source, request, keep_gram=request.noise != "even")
            if self._session is None
            else self._session.after(self._session.steps)
        )

    @KeptProperty
    def finished(self) -> Spectrum:
        """The spectrum as accurate as asked for."""
        return self.look if self._session is None else _grown(self._session, self._request)

    @KeptProperty
    def energies(self) -> Energies | None:
        """Of rows and columns; None where nobody sees the entries, or where their variance is no float64."""
        if not has_variance(self.look):
            return None
        source, run = self.source, None
        if self._session is not None:
            source, run = self._session.source, self._session.runs[0]
        found = energies(source, run)
        return None if found is None else Energies(*found, source.scale_exponent)

    def leading(self, floor: float, limit: int) -> Leading:
        """At most ``limit`` singular triplets of values above ``floor``; asked for before `finished`."""
        if self._session is not None:
            return leading_of_session(self._session, floor, limit)
        if min(self.source.shape) <= GRAM_UP_TO:
            assert self.look.values is not None  # of no session
            count = min(limit, int(np.count_nonzero(self.look.values > floor)))
            return leading_of_gram(self.source, count, self._request.thread_count)
        rough = replace(self._request, method="lanczos", probes=ROUGH_PROBES, steps=None)
        return leading_of_session(_begun(self.source, rough), floor, limit)


def takes_all_values(source: Source, request: Request) -> bool:
    """Whether the first look is at every singular value."""
    if request.method == "exact" or min(source.shape) < LANCZOS_FROM:
        return True
    if request.method != "auto" or request.fixed:
        return False
    return min(source.shape) <= EXACT_UP_TO or exact_is_cheaper(source, first_probes(source.shape, request))


def exact_spectrum(source: Source, request: Request, *, keep_gram: bool = False) -> Spectrum:
    """Every singular value."""
    values, fro_norm, by_squares = source.singular_values(keep_gram=keep_gram)
    return Spectrum.from_values(
        values,
        source.shape,
        dtype=source.dtype,
        device=source.device,
        fro_norm=fro_norm,
        seed=int(request.seed),
        resolution=SQUARES_RESOLUTION if by_squares else None,
    )


def _begun(source: Source, request: Request) -> Session:
    """A session after its first steps, in fp64 where fp32 leaves the bulk too few digits."""
    probes = int(request.probes) if request.probes is not None else first_probes(source.shape, request)
    session = Session(source, request, precise=False)
    session.add_probes(probes)
    if session.needs_double():
        session = Session(session.source, request, precise=True)
        session.add_probes(probes)
    return session


def _grown(session: Session, request: Request) -> Spectrum:
    """Block Lanczos quadrature, grown until the requested accuracy holds."""
    source = session.source
    if request.method == "auto" and session.values_repeat() and exact_is_possible(source):
        return exact_spectrum(session.source, request)
    while True:
        if request.steps is None:
            session.settle()
        else:
            session.compare_steps()
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
