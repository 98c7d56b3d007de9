"""Scales of rows and columns under which the noise is even, found from their energies.

Of noise ``sqrt(x_i y_j) E_ij`` the energies of rows are like x and those of columns like y, where no signals add to
them. So, round by round: look at the spectrum of the scaled matrix, take the strong signals out of its energies, and
put what is uneven in the rest into the scales. Nothing of this sets the edge: that is fitted to the scaled matrix as to
any other. See ``docs/numerics.md`` for the measurements behind the constants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpfast.operators import RestrictedSource, Source, energies, scaled
from mpfast.spectra.edge import fitted_variance
from mpfast.spectra.estimate import Estimate
from mpfast.spectra.marchenko_pastur import sigma_plus
from mpfast.spectra.measured import Spectrum
from mpfast.spectra.noise import (
    DEAD,
    SETTLED,
    Energies,
    NoiseProfile,
    edge_shift,
    fit_shift,
    live_sides,
    shrunk,
    unevenness_of,
)
from mpfast.spectra.request import Request, checked_scales
from mpfast.spectra.tracy_widom import tracy_widom_threshold

Array = NDArray[np.float64]
Kept = NDArray[np.bool_]

__all__ = ["Measured", "measured_under", "measured_with"]

# Signals above so many times the edge are taken out of the energies, no more than so many and than a share of p.
STRONG, MOST, MOST_SHARE = 1.25, 64, 8
# Only signals that more rows and more columns than this share: what single ones own is scale.
SPREAD = 4.0
# A row that lies in the signals by more than this share has no noise left to measure, and keeps its whole energy.
LEVERAGE = 0.5
MAX_ROUNDS = 3
# Scales that are taken out at all are good enough where what they leave moves the edge by less than so many times the
# way from there to the threshold, which shrinks with the matrix: else it is counted as signals.
WAYS_TO_THE_THRESHOLD, FALSE_ALARMS = 5, 0.1


class Measured(NamedTuple):
    """A spectrum, and the source whose it is: W or the scaled matrix."""

    spectrum: Spectrum
    source: Source


@dataclass(frozen=True)
class _Scaling:
    """Variances of the live rows and columns, each of geometric mean 1, and which these are."""

    rows: Kept
    columns: Kept
    x: Array
    y: Array

    @classmethod
    def none(cls, rows: Kept, columns: Kept) -> _Scaling:
        """No scales but those of dead rows and columns, which are left out."""
        return cls(rows, columns, np.ones(int(rows.sum())), np.ones(int(columns.sum())))

    def times(self, x: Array, y: Array) -> _Scaling:
        """With further factors."""
        return replace(self, x=_centred(self.x * x), y=_centred(self.y * y))

    def scales(self) -> tuple[Array, Array]:
        """Scales of all rows, (m,), and columns, (n,); infinite for those left out."""
        return _spread_out(np.sqrt(self.x), self.rows, np.inf), _spread_out(np.sqrt(self.y), self.columns, np.inf)

    def applied(self, source: Source, threads: int) -> Source:
        """The scaled matrix, without dead rows and columns."""
        everything = self.is_everything
        if everything and (self.x == 1).all() and (self.y == 1).all():
            return source
        row_scale, col_scale = self.scales()
        matrix = scaled(source, 1 / row_scale, 1 / col_scale)
        if everything:
            return matrix
        return RestrictedSource(matrix, self.rows, self.columns, threads)

    @property
    def is_everything(self) -> bool:
        """Whether no row and no column is left out."""
        return bool(self.rows.all() and self.columns.all())


def _centred(variances: Array) -> Array:
    centred: Array = variances / np.exp(np.log(variances).mean())
    return centred


def _spread_out(values: Array, kept: Kept, otherwise: float) -> Array:
    whole = np.full(len(kept), otherwise)
    whole[kept] = values
    return whole


class _Reading(NamedTuple):
    """What is uneven in the noise of the scaled matrix: relative variances, and by what share they move the edge."""

    rows: Array
    columns: Array
    left: float
    deflated: int
    passes: int

    @property
    def left_in_fit(self) -> float:
        """By what share they move the edge that is fitted."""
        return fit_shift(self.rows, self.columns)


@dataclass(frozen=True)
class _Round:
    """One look at the scaled matrix."""

    scaling: _Scaling
    estimate: Estimate
    reading: _Reading

    @property
    def left(self) -> float:
        return self.reading.left


def measured_under(begun: Estimate, request: Request, found: Energies) -> Measured:
    """The spectrum under scales that are measured.

    Parameters
    ----------
    begun
        An estimate of the matrix itself that has not been finished.
    request
        What is asked for.
    found
        The energies of the matrix.
    """
    source = begun.source
    scaling = _Scaling.none(*live_sides(found))
    passes, number = 0, 0
    best: _Round | None = None
    while True:
        whole = number == 0 and scaling.is_everything
        estimate = begun if whole else Estimate(scaling.applied(source, request.thread_count), request)
        now = _Round(scaling, estimate, _reading(estimate))
        passes += estimate.look.passes + now.reading.passes
        if number == 0:
            first = estimate.look
        slow = best is not None and now.left > best.left
        if best is None or now.left < best.left:
            best = now
        enough = SETTLED if number == 0 else _good_enough(now.estimate.look.shape)
        if now.left < enough or number == MAX_ROUNDS or slow:
            break
        scaling = scaling.times(now.reading.rows, now.reading.columns)
        number += 1
    spectrum = best.estimate.finished
    row_scale, col_scale = best.scaling.scales()
    profile = NoiseProfile(
        model="uneven",
        row_scale=row_scale,
        col_scale=col_scale,
        unevenness=unevenness_of(found),
        left=best.left,
        rounds=number,
        settled=best.left < SETTLED,
        deflated=best.reading.deflated,
        fro_norm=found.fro_norm,
        variance=fitted_variance(spectrum),
        even_spikes=first.edge.spikes,
        even_ks=first.edge.ks,
        left_in_fit=best.reading.left_in_fit,
    )
    passes += spectrum.passes - best.estimate.look.passes
    return Measured(_with_profile(spectrum, profile, passes), best.estimate.source)


def _good_enough(shape: tuple[int, int]) -> float:
    """What scales may leave, as a share of the edge."""
    threshold = tracy_widom_threshold(1.0, shape, FALSE_ALARMS) / sigma_plus(1.0, shape)
    return min(SETTLED, WAYS_TO_THE_THRESHOLD * (threshold - 1))


def measured_with(source: Source, request: Request, scales: Sequence[ArrayLike]) -> Measured:
    """The spectrum under scales that the caller knows: of rows, (m,), and of columns, (n,)."""
    row_scale, col_scale = checked_scales(scales, source.shape)
    rows, columns = np.isfinite(row_scale), np.isfinite(col_scale)
    scaling = _Scaling(rows, columns, row_scale[rows] ** 2, col_scale[columns] ** 2)
    estimate = Estimate(scaling.applied(source, request.thread_count), request)
    reading = None if estimate.energies is None else _reading(estimate)
    spectrum = estimate.finished
    of_whole = energies(source)
    found = None if of_whole is None else Energies(*of_whole, source.scale_exponent)
    profile = NoiseProfile(
        model="known",
        row_scale=row_scale,
        col_scale=col_scale,
        unevenness=None if found is None else unevenness_of(found),
        left=None if reading is None else reading.left,
        rounds=0,
        settled=reading is not None and reading.left < SETTLED,
        deflated=0 if reading is None else reading.deflated,
        fro_norm=math.nan if found is None else found.fro_norm,
        variance=fitted_variance(spectrum),
        left_in_fit=None if reading is None else reading.left_in_fit,
    )
    passes = spectrum.passes + (0 if reading is None else reading.passes)
    return Measured(_with_profile(spectrum, profile, passes), estimate.source)


def _with_profile(spectrum: Spectrum, profile: NoiseProfile, passes: int) -> Spectrum:
    return replace(spectrum, noise=profile, passes=passes if spectrum.method == "lanczos" else spectrum.passes)


def _reading(estimate: Estimate) -> _Reading:
    """What is uneven in energies once the strong signals are taken out; these are looked for only if it matters."""
    read = estimate.energies
    assert read is not None  # those of the matrix itself are known
    m, n = len(read.rows), len(read.columns)
    edge = estimate.look.edge.sigma_plus
    if edge <= estimate.look.rounding:  # there is no noise whose scale could be uneven
        return _Reading(np.ones(m), np.ones(n), 0.0, 0, 0)
    rows, columns = shrunk(_floored(read.rows), n), shrunk(_floored(read.columns), m)
    left = edge_shift(rows, columns)
    if left < SETTLED:
        return _Reading(rows, columns, left, 0, 0)
    strong = estimate.leading(STRONG * edge, min(MOST, min(m, n) // MOST_SHARE))
    passes = int(len(strong.energies) > 0)
    shared = strong.where(strong.spread > SPREAD)
    rows = shrunk(_floored(_without(read.rows, shared.energies, shared.left)), n)
    columns = shrunk(_floored(_without(read.columns, shared.energies, shared.right)), m)
    return _Reading(rows, columns, edge_shift(rows, columns), len(shared.energies), passes)


def _floored(side: Array) -> Array:
    floored: Array = np.maximum(side, DEAD * float(np.median(side)))
    return floored


def _without(side: Array, signal_energies: Array, vectors: Array) -> Array:
    """Energies without the signals', as those of whole rows: what the signals' space leaves of each is its noise."""
    leverage = vectors.sum(axis=0)
    rest = (side - signal_energies @ vectors) / (1 - np.minimum(leverage, LEVERAGE))
    energy: Array = np.where(leverage > LEVERAGE, side, rest)
    return energy
