"""Noise whose rows and columns differ in scale: what the energies of rows and columns say of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpfast.spectra.separable import SeparableLaw, separable_edge
from mpfast.support import KeptProperty, Record, percent

Array = NDArray[np.float64]

__all__ = [
    "DEAD",
    "FEWEST_VALUES",
    "SETTLED",
    "Energies",
    "NoiseProfile",
    "edge_shift",
    "edge_shift_of",
    "energy_share",
    "fit_shift",
    "live_sides",
    "percent_of_edge",
    "shrunk",
    "unevenness_of",
]

#: Of fewer singular values than that the law is asymptotic, and scales of rows and columns are not told from signals.
FEWEST_VALUES = 64
#: Unevenness that would move the edge by less than this share of it is left alone.
SETTLED = 0.01
# Unevenness left over below this share of the edge is not seen in its error.
NEGLIGIBLE = 1e-3
# By how much, of the variance of the logarithms of relative variances, a profile moves the edge that is fitted to the
# middle of the spectrum: up by a quarter, for its energy is larger than its geometric mean, and down by SAG of those of
# the short side and p / q times those of the long one, for the middle falls where the top rises. To first order, within
# 0.015; see docs/numerics.md.
ENERGY, SAG = 0.25, 0.21
# Rows of less than this share of the median energy are left out, like rows of zeros.
DEAD = 1e-4
# Relative variance of the energy of a row of n Gaussian entries of equal variance: 2 / n. With heavier tails energies
# scatter more; that is real, and taking it out removes what single huge entries look like.
GAUSSIAN = 2.0
# Standard deviations of the sampled variance of energies up to which they may be equal.
EQUAL_WITHIN = 4.0
MODELS = ("even", "uneven", "known")


class Energies(NamedTuple):
    """Sums of squares of every row, (m,), and of every column, (n,), in units of ``4**exponent``."""

    rows: Array
    columns: Array
    exponent: int

    @property
    def fro_norm(self) -> float:
        """Frobenius norm."""
        return math.sqrt(float(self.rows.sum())) * 2.0**self.exponent

    def of(self, rows: NDArray[np.bool_], columns: NDArray[np.bool_]) -> Energies:
        """Those of some rows and columns, which hold nearly all of the energy."""
        return Energies(self.rows[rows], self.columns[columns], self.exponent)


def shrunk(energies: Array, entries: int) -> Array:
    """Energies over their mean, of rows of so many ``entries``, drawn to 1 by what sampling alone scatters.

    All exactly 1 where sampling alone explains them.
    """
    relative = energies / energies.mean()
    variance, sampled = float(relative.var()), GAUSSIAN / entries
    if variance < sampled * (1 + EQUAL_WITHIN * math.sqrt(2 / len(relative))):
        return np.ones(len(relative))
    shares: Array = 1 + (1 - sampled / variance) * (relative - 1)
    return shares


def edge_shift(rows: Array, columns: Array) -> float:
    """By what share noise of these relative variances ends above even noise of the same energy."""
    if (rows == 1).all() and (columns == 1).all():
        return 0.0
    edge = separable_edge(rows / rows.mean(), columns / columns.mean()).sigma_plus
    return max(edge / (math.sqrt(len(rows)) + math.sqrt(len(columns))) - 1, 0.0)


def fit_shift(rows: Array, columns: Array) -> float:
    """By what share noise of these relative variances, of geometric mean 1, moves the edge fitted to its middle."""
    short, long = sorted((rows, columns), key=len)
    short_spread, long_spread = (float(np.log(side).var()) for side in (short, long))
    return ENERGY * (short_spread + long_spread) - SAG * (short_spread + len(short) / len(long) * long_spread)


def edge_shift_of(energies: Energies) -> float:
    """By what share uneven noise of such energies would end above even noise; 0 where sampling explains them."""
    m, n = len(energies.rows), len(energies.columns)
    return edge_shift(shrunk(energies.rows, n), shrunk(energies.columns, m))


def unevenness_of(energies: Energies) -> float:
    """The same for the live rows and columns."""
    rows, columns = live_sides(energies)
    return edge_shift_of(energies.of(rows, columns)) if rows.any() and columns.any() else 0.0


def live_sides(energies: Energies) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which rows and columns are more than (nearly) zero."""
    return _live(energies.rows), _live(energies.columns)


def _live(side: Array) -> NDArray[np.bool_]:
    nonzero = side[side > 0]
    live: NDArray[np.bool_] = side > (DEAD * float(np.median(nonzero)) if len(nonzero) else 0.0)
    return live


def energy_share(variance: float, mass: float, norm: float) -> float:
    """Share of the energy ``norm^2`` that noise of this variance has, ``mass`` times it; NaN where there is none."""
    if not norm > 0:
        return math.nan
    relative = math.sqrt(variance) * math.sqrt(mass) / norm  # the squares may be beyond float64
    return relative * relative


def percent_of_edge(share: float) -> str:
    """Write by what share an edge would move."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"


@dataclass(frozen=True, eq=False, repr=False)
class NoiseProfile:
    """Scales of the noise in the rows and columns of W, shape (m, n): ``N_ij = row_scale_i col_scale_j sd E_ij``.

    Attributes
    ----------
    model
        ``"even"``: one scale for all, as asked for or because the energies show no other; ``"uneven"``: measured;
        ``"known"``: given by the caller.
    row_scale, col_scale
        Shapes (m,) and (n,); geometric mean 1 over those that are live, infinite for (nearly) dead rows and columns,
        which are left out. The spectrum is that of ``W / (row_scale x col_scale)``.
    unevenness
        By what share the edge would move if all that energies of rows and columns differ in were noise. An alarm, not
        a finding: strong signals in few rows or columns raise it, too. None where nobody has seen the entries.
    left
        The same for what the scales and the strong signals leave: noise that is as uneven as that ends so far above
        even noise of the same energy.
    left_in_fit
        By what share that moves the fitted edge, which follows the middle of the spectrum. None where nobody looked.
    rounds
        How often scales were taken out, and the spectrum measured again.
    settled
        Whether ``left`` is below 1 %.
    deflated
        Number of strong signals, shared by several rows and columns, that were taken away to read the energies.
    fro_norm
        Frobenius norm of W; NaN where nobody has seen the entries.
    variance
        Fitted variance of an entry of the scaled noise, by the default fit.
    even_spikes, even_ks
        Number of spikes and Kolmogorov distance of the fit of even noise, from the first look at W. None where the
        model is even: the fit itself says so.
    """

    model: str
    row_scale: Array
    col_scale: Array
    unevenness: float | None
    left: float | None
    rounds: int
    settled: bool
    deflated: int
    fro_norm: float
    variance: float
    even_spikes: int | None = None
    even_ks: float | None = None
    left_in_fit: float | None = None

    @classmethod
    def even(cls, energies: Energies, variance: float) -> NoiseProfile:
        """The profile of one scale for all, with what the energies say against it."""
        shift = unevenness_of(energies)
        ones = np.ones(len(energies.rows)), np.ones(len(energies.columns))
        return cls("even", *ones, shift, shift, 0, shift < SETTLED, 0, energies.fro_norm, variance)

    def __repr__(self) -> str:
        uneven = "" if self.unevenness is None else f", unevenness {percent(self.unevenness)}"
        return f"<NoiseProfile of {len(self.row_scale)} rows and {len(self.col_scale)} columns: {self.model}{uneven}>"

    @property
    def live(self) -> tuple[int, int]:
        """Number of rows and of columns that are not left out."""
        return int(np.isfinite(self.row_scale).sum()), int(np.isfinite(self.col_scale).sum())

    @property
    def scaled(self) -> bool:
        """Whether live rows or columns have different scales."""
        return any(bool(np.any(scale[np.isfinite(scale)] != 1)) for scale in (self.row_scale, self.col_scale))

    @property
    def dead(self) -> int:
        """Number of rows and columns that are left out."""
        return len(self.row_scale) + len(self.col_scale) - sum(self.live)

    @property
    def unsettled(self) -> bool:
        """Whether scales that were measured or given are known to leave something uneven."""
        return self.model != "even" and self.left is not None and not self.settled

    @property
    def row_spread(self) -> float:
        """Standard deviation of the logarithms of the live rows' scales: 0.15 is some 15 %."""
        return _spread(self.row_scale)

    @property
    def col_spread(self) -> float:
        """Standard deviation of the logarithms of the live columns' scales."""
        return _spread(self.col_scale)

    @property
    def noise_mass(self) -> float:
        """Sum of ``row_scale^2`` times that of ``col_scale^2``: squared norm of noise of variance 1."""
        rows, columns = self._live_variances
        return float(rows.sum()) * float(columns.sum())

    @property
    def share(self) -> float:
        """Share of the energy of W that is fitted noise, signals' own noise included; NaN for the zero matrix.

        Well above 1 where the scales stand for single huge entries: they put noise into whole rows and columns.
        """
        return energy_share(self.variance, self.noise_mass, self.fro_norm)

    @KeptProperty
    def edge_in_W(self) -> float:
        """Where the noise of W itself ends, scales included; singular-value scale."""
        if not self.variance > 0:
            return 0.0
        return math.sqrt(self.variance) * separable_edge(*self._live_variances).sigma_plus

    @property
    def law(self) -> SeparableLaw:
        """The law of the singular values of W's own noise."""
        rows, columns = self._live_variances
        return SeparableLaw(self.variance * rows, columns)

    @property
    def relative_error(self) -> float:
        """What the scales add to the error of an edge, relative to it: all of ``left`` where they have not settled."""
        if self.model == "even" or self.left is None or self.left < NEGLIGIBLE:
            return 0.0
        return self.left if self.left_in_fit is None or not self.settled else self.left_in_fit

    @property
    def complaint(self) -> str:
        """What to say of scales that leave something uneven; empty where nothing is known to be left."""
        if self.left is None or not self.unsettled:
            return ""
        what = (
            "the given scales of rows and columns do not make the noise even"
            if self.model == "known"
            else f"the scales of rows and columns did not settle in {self.rounds} rounds"
        )
        return f"{what}: what is uneven under them would move the edge by {percent_of_edge(self.left)}"

    @property
    def unconverged(self) -> str:
        """The same of scales that were measured: others have nothing to settle."""
        return self.complaint if self.model == "uneven" else ""

    @property
    def _live_variances(self) -> tuple[Array, Array]:
        rows, columns = (side[np.isfinite(side)] ** 2 for side in (self.row_scale, self.col_scale))
        return rows, columns

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types; None for the scale of what is left out."""
        record = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("row_scale", "col_scale"):
            scale = record[name]
            record[name] = [value if math.isfinite(value) else None for value in scale.tolist()]
        return record

    @classmethod
    def from_record(cls, read: Record, shape: tuple[int, int]) -> NoiseProfile:
        """Rebuild from `to_dict`, for a spectrum of this shape; ValueError names the field that is wrong or missing."""
        read.allow({field.name for field in fields(cls)})
        model = read.text("model")
        if model not in MODELS:
            raise read.refuse("model", f"one of {', '.join(MODELS)}")
        return cls(
            model=model,
            row_scale=_scales(read, "row_scale", shape[0]),
            col_scale=_scales(read, "col_scale", shape[1]),
            unevenness=read.optional_number("unevenness", 0),
            left=read.optional_number("left", 0),
            rounds=read.integer("rounds"),
            settled=read.flag("settled"),
            deflated=read.integer("deflated"),
            fro_norm=read.measured("fro_norm"),
            variance=read.number("variance", 0),
            even_spikes=read.integer("even_spikes") if read.has("even_spikes") else None,
            even_ks=read.optional_number("even_ks", 0),
            left_in_fit=read.optional_number("left_in_fit", 0),
        )


def _spread(scale: Array) -> float:
    return float(np.log(scale[np.isfinite(scale)]).std())


def _scales(read: Record, name: str, live: int) -> Array:
    given = read.get(name)
    wanted = f"a list of {live} positive numbers, and null for what is left out"
    kinds = isinstance(given, list) and all(entry is None or type(entry) in (int, float) for entry in given)
    if not kinds:
        raise read.refuse(name, wanted)
    scale = np.array([math.inf if entry is None else float(entry) for entry in given])
    if not (scale > 0).all() or np.count_nonzero(np.isfinite(scale)) != live:
        raise read.refuse(name, wanted)
    return scale
