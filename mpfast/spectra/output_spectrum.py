"""The spectrum of ``W C^(1/2)``: what a layer's outputs lose when its weights are cut to a rank.

Its entries are not independent, so that no edge is looked for: probes and steps grow until the ranks that leave a
relative error stand still.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from mpfast.operators import RUN_WIDTH, InputRoot, OutputSource, Source
from mpfast.spectra.distribution import Measure
from mpfast.spectra.measured import Spectrum
from mpfast.spectra.request import Request
from mpfast.spectra.rounding import SQUARES_RESOLUTION
from mpfast.spectra.session import SETTLED, STEP_GROWTH, Session
from mpfast.spectra.truncation import rank_for_error, ranks_of
from mpfast.spectra.work import LANCZOS_FROM, MAX_PROBES, exact_is_cheaper, exact_is_possible
from mpfast.support import InvalidValueError

__all__ = ["output_spectrum"]

# Relative errors whose ranks have to stand still.
REFERENCES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
# Up to here every singular value is computed: products with a layer and its moment are dear.
EXACT_UP_TO = 1024
# Probes times p to begin with.
PROBE_MASS = 32768
# Share of `tol` that the reported error has to meet.
MARGIN = 0.7


def output_spectrum(source: Source, inputs: Any, request: Request) -> Spectrum:
    """Measure the spectrum of W times a root of the second moment of its inputs, or of the `InputRoot` itself."""
    threads = request.thread_count
    root = inputs if isinstance(inputs, InputRoot) else InputRoot(inputs, "inputs", threads)
    if root.inputs != source.shape[1]:
        raise InvalidValueError(
            "inputs", f"is of {root.inputs} inputs, but W has {source.shape[1]}: its shape is {source.shape}"
        )
    p = min(source.shape)
    if request.method == "lanczos" and p < LANCZOS_FROM:
        raise InvalidValueError(
            "", f"method='lanczos' needs min(W.shape) >= {LANCZOS_FROM}, got {source.shape}", "use method='exact'"
        )
    if root.rank == 0:
        return _of_layer(Spectrum.from_values(np.zeros(p), source.shape), source)
    outputs = OutputSource(source, root, threads)
    return _of_layer(_estimated(outputs, request), source)


def _estimated(outputs: OutputSource, request: Request) -> Spectrum:
    p = min(outputs.shape)
    probes = min(4 * math.ceil(max(PROBE_MASS / p, 4) / 4), MAX_PROBES)
    wants_exact = request.method == "auto" and not request.fixed and _exact_is_cheaper(outputs, probes)
    if request.method == "exact" or p < LANCZOS_FROM or wants_exact:
        return _exact(outputs)
    may_be_exact = request.method == "auto" and exact_is_possible(outputs)
    session = Session(outputs, request, precise=True, part_width=RUN_WIDTH)
    session.add_probes(request.probes or probes)
    if may_be_exact and session.values_repeat():
        return _exact(outputs)
    while True:
        _settle(session, request)
        if may_be_exact and session.shows_zeros():
            return _exact(outputs)
        found = session.spectrum()
        if found.values is not None or request.fixed:
            return found
        if session.hides_values() or session.shows_zeros():
            return replace(
                found,
                unmet_tolerance="singular values repeat or are zero, and not all of the distinct ones were found: the "
                "errors may be larger than reported; method='exact' has none",
            )
        error = max(rank_for_error(found, reference).rank_error for reference in REFERENCES) / p
        if error <= MARGIN * request.tol:
            return found
        more = session.probes_missing(error, MARGIN)
        if request.method == "auto" and _exact_is_cheaper(outputs, more):
            return _exact(outputs)
        more = min(more, MAX_PROBES - session.probes)
        if more < 1:
            missed = (
                f"tol={request.tol:g} was not met: ranks have a standard error of {error:.2g} of all {p} after "
                f"{session.probes} probes and {session.steps} steps; method='exact' gives them without error"
            )
            return found if error <= request.tol else replace(found, unmet_tolerance=missed)
        session.add_probes(more)


def _exact_is_cheaper(outputs: OutputSource, probes: int) -> bool:
    return min(outputs.shape) <= EXACT_UP_TO or exact_is_cheaper(outputs, probes)


def _settle(session: Session, request: Request) -> None:
    """Take further steps until the ranks stand still, and note by how much the last two of them moved these."""
    p = min(session.source.shape)
    limit = session.most_steps
    while session.steps > 2:  # fewer: the space has closed, nothing is left to settle
        now, before = (ranks_of(session.after(at).measure, p, REFERENCES) for at in (session.steps, session.steps - 2))
        session.settling = float(np.abs(now - before).max()) / p
        done = all(run.exhausted for run in session.runs) or session.atoms is not None
        if done or request.steps is not None or session.settling <= SETTLED * request.tol or session.steps >= limit:
            return
        session.advance(min(STEP_GROWTH, limit - session.steps))


def _exact(outputs: OutputSource) -> Spectrum:
    values, fro_norm, by_squares = outputs.singular_values()
    return Spectrum.from_values(
        values,
        outputs.shape,
        device=outputs.device,
        fro_norm=fro_norm,
        resolution=SQUARES_RESOLUTION if by_squares else None,
    )


def _of_layer(found: Spectrum, source: Source) -> Spectrum:
    """The same as the spectrum of ``W C^(1/2)``, of the shape of W: what the root has fewer columns, are zeros."""
    p = min(source.shape)
    zeros = p - min(found.shape)
    common: dict[str, Any] = {"shape": source.shape, "dtype": source.dtype, "of_outputs": True}
    if found.values is not None:
        values = np.append(found.values, np.zeros(zeros))
        exact = Spectrum.from_values(values, source.shape, device=found.device, resolution=found.resolution)
        return replace(exact, **common)
    measure = _padded(found.measure, zeros, p)
    return replace(
        found,
        **common,
        measure=measure,
        replicates=tuple(_padded(replicate, zeros, p) for replicate in found.replicates),
        fro_norm=math.sqrt(p * measure.moment(2)),
        zero_fraction=((found.zero_fraction or 0.0) * (p - zeros) + zeros) / p,
    )


def _padded(measure: Measure, zeros: int, p: int) -> Measure:
    if zeros == 0:
        return measure
    return replace(
        measure,
        nodes=np.append(measure.nodes, 0.0),
        weights=np.append(measure.weights * ((p - zeros) / p), zeros / p),
    )
