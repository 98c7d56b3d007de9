"""Scales of rows and columns under which the noise is even, found from their energies.

Of noise ``sqrt(x_i y_j) E_ij`` the energies of rows are like x and those of columns like y, where no signals add to
them. So, round by round: look at the spectrum of the scaled matrix, take the strong signals out of its energies, and
put what is uneven in the rest into the scales. Nothing of this sets the edge: that is fitted to the scaled matrix as to
any other. See ``docs/numerics.md`` for the measurements behind the constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpfast.operators import RestrictedSource, Source, energies, scaled
from mpfast.spectra.estimate import Estimate
from mpfast.spectra.measured import Spectrum
from mpfast.spectra.noise import DEAD, SETTLED, Energies, NoiseProfile, edge_shift, live_sides, shrunk
from mpfast.spectra.request import Request, checked_scales

Array = NDArray[np.float64]
Kept = NDArray[np.bool_]

__all__ = ["Measured", "energies_of", "measured_under", "measured_with"]

# Signals above so many times the edge are taken out of the energies, no more than so many and than a share of p.
STRONG, MOST, MOST_SHARE = 1.25, 64, 8
# Only signals that more rows and more columns than this share: what single ones own is scale.
SPREAD = 4.0
# A row that lies in the signals by more than this share has no noise left to measure, and keeps its whole energy.
LEVERAGE = 0.5
MAX_ROUNDS = 3


class Measured(NamedTuple):
    """A spectrum, and the source whose it is: W or the scaled matrix."""

    spectrum: Spectrum
    source: Source


def energies_of(source: Source) -> Energies | None:
    """Energies of a source; None where nobody sees its entries, or where they leave the range of float64."""
    found = energies(source)
    if found is None or not (np.isfinite(found[0]).all() and np.isfinite(found[1]).all()):
        return None
    return Energies(*found)


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

    def applied(self, source: Source, found: Energies, threads: int) -> tuple[Source, Energies]:
        """The scaled matrix without dead rows and columns, and its energies; ``found`` are those of W."""
        everything = bool(self.rows.all() and self.columns.all())
        if everything and (self.x == 1).all() and (self.y == 1).all():
            return source, found
        factors = (
            _spread_out(1 / np.sqrt(self.x), self.rows, 0.0),
            _spread_out(1 / np.sqrt(self.y), self.columns, 0.0),
        )
        matrix = scaled(source, *factors)
        read = energies_of(matrix)
        assert read is not None  # those of W are known
        alive = Energies(read.rows[self.rows], read.columns[self.columns])
        if everything:
            return matrix, alive
        squared_norm = float(alive.rows.sum()) * 4.0**-matrix.scale_exponent
        return RestrictedSource(matrix, self.rows, self.columns, squared_norm, threads), alive


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


@dataclass(frozen=True)
class _Round:
    """One look at the scaled matrix."""

    scaling: _Scaling
    estimate: Estimate
    reading: _Reading

    @property
    def left(self) -> float:
        return self.reading.left


def measured_under(source: Source, request: Request, found: Energies, begun: Estimate | None = None) -> Measured:
    """The spectrum under scales that are measured.

    Parameters
    ----------
    source, request
        What is measured, and how.
    found
        The energies of ``source``.
    begun
        An estimate of ``source`` itself that has not been finished, to go on with.
    """
    scaling = _Scaling.none(*live_sides(found))
    everything = bool(scaling.rows.all() and scaling.columns.all())
    passes, number = 0, 0
    best: _Round | None = None
    while True:
        matrix, read = scaling.applied(source, found, request.thread_count)
        estimate = begun if begun is not None and number == 0 and everything else Estimate(matrix, request)
        now = _Round(scaling, estimate, _reading(estimate, read))
        passes += estimate.look.passes + now.reading.passes
        if number == 0:
            first = now
        slow = best is not None and now.left > best.left
        if best is None or now.left < best.left:
            best = now
        if now.left < SETTLED or number == MAX_ROUNDS or slow:
            break
        scaling = scaling.times(now.reading.rows, now.reading.columns)
        number += 1
    profile = _profile(best, found, number, first.estimate.look)
    spectrum = best.estimate.finished
    passes += spectrum.passes - best.estimate.look.passes
    return Measured(_with_profile(spectrum, profile, passes), best.estimate.source)


def measured_with(source: Source, request: Request, scales: Sequence[ArrayLike]) -> Measured:
    """The spectrum under scales that the caller knows: of rows, (m,), and of columns, (n,)."""
    row_scale, col_scale = checked_scales(scales, source.shape)
    rows, columns = np.isfinite(row_scale), np.isfinite(col_scale)
    scaling = _Scaling(rows, columns, row_scale[rows] ** 2, col_scale[columns] ** 2)
    found = energies_of(source)
    if found is None:
        matrix = scaled(source, 1 / row_scale, 1 / col_scale)
        estimate = Estimate(matrix, request)
        reading = None
    else:
        matrix, read = scaling.applied(source, found, request.thread_count)
        estimate = Estimate(matrix, request)
        reading = _reading(estimate, read)
    spectrum = estimate.finished
    profile = NoiseProfile(
        model="known",
        row_scale=row_scale,
        col_scale=col_scale,
        unevenness=None if found is None else NoiseProfile.even(found, 0.0, 0.0).unevenness,
        left=None if reading is None else reading.left,
        rounds=0,
        settled=reading is not None and reading.left < SETTLED,
        deflated=0 if reading is None else reading.deflated,
        fro_norm=spectrum.fro_norm if found is None else float(np.sqrt(found.rows.sum())),
        variance=spectrum.edge.variance,
    )
    passes = spectrum.passes + (0 if reading is None else reading.passes)
    return Measured(_with_profile(spectrum, profile, passes), matrix)


def _profile(best: _Round, found: Energies, rounds: int, first: Spectrum) -> NoiseProfile:
    row_scale, col_scale = best.scaling.scales()
    return NoiseProfile(
        model="uneven",
        row_scale=row_scale,
        col_scale=col_scale,
        unevenness=NoiseProfile.even(found, 0.0, 0.0).unevenness,
        left=best.left,
        rounds=rounds,
        settled=best.left < SETTLED,
        deflated=best.reading.deflated,
        fro_norm=float(np.sqrt(found.rows.sum())),
        variance=best.estimate.finished.edge.variance,
        even_spikes=first.edge.spikes,
        even_ks=first.edge.ks,
    )


def _with_profile(spectrum: Spectrum, profile: NoiseProfile, passes: int) -> Spectrum:
    return replace(spectrum, noise=profile, passes=passes if spectrum.method == "lanczos" else spectrum.passes)


def _reading(estimate: Estimate, read: Energies) -> _Reading:
    """What is uneven in energies once the strong signals are taken out; these are looked for only if it matters."""
    m, n = len(read.rows), len(read.columns)
    rows, columns = shrunk(_floored(read.rows), n), shrunk(_floored(read.columns), m)
    left = edge_shift(rows, columns)
    edge = estimate.look.edge.sigma_plus
    if left < SETTLED or edge <= estimate.look.rounding:
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
