"""The law of noise whose rows and columns differ in scale: ``N_ij = sqrt(x_i y_j) E_ij``, E of unit variance.

Notation: with ``u_i = x_i a / (1 - x_i a)`` and ``v_j = y_j b / (1 - y_j b)`` the resolvent of ``N N^T`` at ``z = s^2``
follows from ``sum_i u_i = sum_j v_j = z a b``. For real z beyond the edge ``0 < a < 1 / max x`` and ``0 < b < 1 / max
y``; both sums grow from 0 to infinity, so that b and ``z = sum u / (a b)`` are functions of a. z falls and then rises,
and its minimum is the square of the edge. There ``sum u^2 sum v^2 = (sum u)^2``, the condition that is solved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpfast.spectra.marchenko_pastur import checked_probabilities
from mpfast.support import InvalidValueError, KeptProperty, float_array, front_door

Array = NDArray[np.float64]
Complex = NDArray[np.complex128]

__all__ = ["SeparableEdge", "SeparableLaw", "separable_edge"]

# A longer profile is cut into so many groups of equal size, each by its mean, and the largest values one by one: these
# make the edge.
GROUPS, LARGEST_KEPT = 1024, 64
# The density is smooth: it needs fewer groups.
DENSITY_GROUPS = 160
DENSITY_POINTS = 360
# The imaginary part of z is lowered from twice the edge to this share of the real part, in so many levels.
NEAR_THE_AXIS, LEVELS, NEWTON_STEPS = 1e-6, 30, 3
# The minimum lies within these logits of ``a max x``: beyond them `1 - x a` or its difference to 1 is rounding.
LOGIT_RANGE = 36.0
# Step of a logit after which Newton's iteration has all its digits: the next would be about the square of it.
LAST_STEP = 1e-7


class SeparableEdge(NamedTuple):
    """Where the singular values of uneven noise end.

    Attributes
    ----------
    sigma_plus : float
        Upper edge, singular-value scale.
    scale : float
        Of the fluctuations of the largest value, on the scale of squares: ``(s_1^2 - sigma_plus^2) / scale`` follows
        the Tracy-Widom law. 0 or infinite where a square is no float64.
    a, b : float
        Where the minimum is; see `mpfast.spectra.separable`.
    """

    sigma_plus: float
    scale: float
    a: float
    b: float


class _Sums(NamedTuple):
    """Of one side: ``a max x``, 1 less that, and the sums of u, u^2 and u^3."""

    a: float
    rest: float
    first: float
    second: float
    third: float

    @property
    def excess(self) -> float:
        """``d log(sum u) / d log(a) - 1``."""
        return self.second / self.first

    @property
    def bend(self) -> float:
        """``d log(excess) / d log(a)``."""
        return 1 + 2 * self.third / self.second - self.second / self.first


class _Profile:
    """Variances over the largest of them, each standing for ``counts`` rows, and the sums that the equations need."""

    def __init__(self, variances: Array, groups: int) -> None:
        self.largest = float(variances.max())
        ordered = np.sort(variances) / self.largest  # before sums, which could leave float64
        if len(ordered) <= groups + LARGEST_KEPT:
            means, counts = ordered, np.ones(len(ordered))
        else:
            grouped, largest = ordered[:-LARGEST_KEPT], ordered[-LARGEST_KEPT:]
            starts = np.arange(groups) * len(grouped) // groups
            sizes = np.diff(starts, append=len(grouped))
            means = np.concatenate([np.add.reduceat(grouped, starts) / sizes, largest])
            counts = np.concatenate([sizes, np.ones(LARGEST_KEPT)])
        self.shares = means
        self.counts = counts

    def at(self, logit: float) -> _Sums:
        """The sums where ``a max x`` has this logit."""
        near, far = 1 / (1 + math.exp(-logit)), 1 / (1 + math.exp(logit))
        u = self.shares * near / ((1 - self.shares) + self.shares * far)
        weighted = self.counts * u
        return _Sums(near, far, float(weighted.sum()), float(weighted @ u), float(weighted @ (u * u)))


def _where_sum_is(profile: _Profile, total: float, logit: float) -> tuple[float, _Sums]:
    """Logit and sums where ``sum v`` is ``total``: Newton's iteration on logarithms, kept within a bracket."""
    low, high = -LOGIT_RANGE - math.log(len(profile.shares) + 1), 2 * LOGIT_RANGE
    while True:
        sums = profile.at(logit)
        miss = math.log(sums.first / total)
        low, high = (low, logit) if miss > 0 else (logit, high)
        following = logit - miss / (sums.rest * (1 + sums.excess))
        if not low < following < high:
            following = 0.5 * (low + high)
        if abs(following - logit) <= LAST_STEP:
            return following, profile.at(following)
        logit = following


def _minimum(x: _Profile, y: _Profile) -> tuple[_Sums, _Sums]:
    """Both sides where z is least: ``log(excess)`` of both adds up to 0, by Newton's iteration within a bracket."""
    low, high = -LOGIT_RANGE, LOGIT_RANGE
    logit = other = 0.0
    while True:
        u = x.at(logit)
        other, v = _where_sum_is(y, u.first, other)
        slope = math.log(u.excess * v.excess)
        low, high = (low, logit) if slope > 0 else (logit, high)
        following = logit - slope / (u.rest * (u.bend + (1 + u.excess) / (1 + v.excess) * v.bend))
        if not low < following < high:
            following = 0.5 * (low + high)
        if abs(following - logit) <= LAST_STEP:
            u = x.at(following)
            return u, _where_sum_is(y, u.first, other)[1]
        logit = following


@front_door
def separable_edge(x: ArrayLike, y: ArrayLike) -> SeparableEdge:
    """Upper edge of the singular values of noise of row variances x and column variances y.

    The entries are ``sqrt(x_i y_j) E_ij``, E of independent entries of variance 1. Takes O(m + n), and no matrix.

    Parameters
    ----------
    x, y
        Variances of the rows, shape (m,), and of the columns, shape (n,): finite, at least 0, not all 0. Profiles of
        more than 1088 values are cut into 1024 groups of equal size and the 64 largest values.

    Returns
    -------
    SeparableEdge
        ``sigma_plus`` and ``scale`` as a pair with the point at which they were found.

    Raises
    ------
    ValueError
        A profile is not 1-D, is empty, all zero, or has an entry that is negative or not finite.
    TypeError
        It is no array of real numbers.

    References
    ----------
    Leeb, "Rapid evaluation of the spectral signal detection threshold and Stieltjes transform", arXiv 1904.11665, for
    the equations; Ding and Yang, arXiv 1905.13060, for the fluctuations at the edge.

    Examples
    --------
    >>> import numpy as np
    >>> even = separable_edge(np.ones(300), np.full(500, 2.0))
    >>> print(f"{even.sigma_plus:.4f}", f"{2**0.5 * (300**0.5 + 500**0.5):.4f}")
    56.1177 56.1177
    """
    rows, columns = (_Profile(_variances(profile, name), GROUPS) for profile, name in ((x, "x"), (y, "y")))
    u, v = _minimum(rows, columns)
    square = u.first / (u.a * v.a)  # over the largest variances
    # Near its minimum, Z, log z is L/2 times the square of log a. The density of eigenvalues there is
    # (kappa / pi) sqrt(Z - z), with kappa = (sum u + sum u^2) sqrt(2 / L) Z^(-3/2).
    p, q = 1 + u.excess, 1 + v.excess
    curvature = u.excess * u.bend * (1 - 1 / q) + p * p / q**3 * v.excess * v.bend
    kappa = (u.first + u.second) * math.sqrt(2 / curvature) * square**-1.5
    size = math.sqrt(rows.largest) * math.sqrt(columns.largest)
    return SeparableEdge(
        sigma_plus=math.sqrt(square) * size,
        scale=kappa ** (-2 / 3) * size * size,
        a=u.a / rows.largest,
        b=v.a / columns.largest,
    )


def _variances(profile: ArrayLike, name: str) -> Array:
    values = float_array(profile, name)
    if values.ndim != 1 or values.size == 0:
        raise InvalidValueError(name, f"must be the variances of rows or columns, but has shape {values.shape}")
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() > 0):
        raise InvalidValueError(name, "must be finite and at least 0, and not 0 everywhere", "leave out what is dead")
    return values


@dataclass(frozen=True, eq=False)
class SeparableLaw:
    """The law of the singular values of noise of row variances x, shape (m,), and column variances y, shape (n,).

    Only the ``p = min(m, n)`` values are counted that rows or columns are not too few for; singular-value scale.

    Raises
    ------
    ValueError, TypeError
        As `separable_edge`.

    Notes
    -----
    The density is computed on 360 points, of profiles cut into 160 groups and the 64 largest values: the distribution
    function errs by about 1e-3. It takes a few tenths of a second, once.

    References
    ----------
    As `separable_edge`.

    Examples
    --------
    >>> import numpy as np
    >>> law = SeparableLaw(np.ones(300), np.full(500, 2.0))
    >>> print(f"{float(law.ppf(0.5)):.2f}", f"{law.sigma_plus:.2f}")
    28.21 56.12
    """

    x: Array
    y: Array

    @front_door
    def __post_init__(self) -> None:
        object.__setattr__(self, "x", _variances(self.x, "x"))
        object.__setattr__(self, "y", _variances(self.y, "y"))

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return len(self.x), len(self.y)

    @KeptProperty
    def edge(self) -> SeparableEdge:
        """The upper edge; see `separable_edge`."""
        return separable_edge(self.x, self.y)

    @property
    def sigma_plus(self) -> float:
        """Upper edge, singular-value scale."""
        return self.edge.sigma_plus

    def pdf(self, s: ArrayLike) -> Array:
        """Density per unit of s; 0 outside the support."""
        grid, _, density = self._curve
        return np.interp(np.asarray(s, dtype=np.float64), grid, density, left=0.0, right=0.0)

    def cdf(self, s: ArrayLike) -> Array:
        """Distribution function; 1 at and above ``sigma_plus``."""
        grid, cumulative, _ = self._curve
        return np.interp(np.asarray(s, dtype=np.float64), grid, cumulative)

    @front_door
    def ppf(self, u: ArrayLike) -> Array:
        """Quantiles at probabilities ``u`` in [0, 1], singular-value scale.

        Raises
        ------
        ValueError
            A probability is outside.
        """
        grid, cumulative, _ = self._curve
        return np.interp(checked_probabilities(u), cumulative, grid)

    @property
    def mass(self) -> float:
        """What the density integrates to before it is normalised: 1 but for the error of the computation."""
        return float(self._unnormalised[1][-1])

    @property
    def _curve(self) -> tuple[Array, Array, Array]:
        """Values of s from 0 to the edge, and there the distribution function and the density."""
        grid, cumulative, density = self._unnormalised
        return grid, cumulative / cumulative[-1], density / cumulative[-1]

    @KeptProperty
    def _unnormalised(self) -> tuple[Array, Array, Array]:
        # In the angle theta, s = edge sin(theta), the square root at the edge is smooth: trapezoids are enough.
        theta = np.linspace(0, np.pi / 2, DENSITY_POINTS + 1)
        grid = self.sigma_plus * np.sin(theta)
        density = np.empty(len(theta))
        density[1:] = 2 * grid[1:] / min(self.shape) * self._eigenvalue_density(grid[1:] ** 2)
        density[0] = density[1]
        slope = density * self.sigma_plus * np.cos(theta)
        steps = 0.5 * (slope[1:] + slope[:-1]) * np.diff(theta)
        return grid, np.concatenate([[0.0], np.cumsum(steps)]), density

    def _eigenvalue_density(self, real: Array) -> Array:
        """Density of the squares at ``real`` > 0, counted, not normalised.

        Newton's iteration at ``z = real + i eta``, from an eta at which ``a = sum y / z``, ``b = sum x / z`` holds
        nearly, down to the axis. Of the solutions those with imaginary parts at most 0 are the right ones.
        """
        x, y = (_Profile(profile, DENSITY_GROUPS) for profile in (self.x, self.y))
        top = self.sigma_plus**2
        rows, columns = x.shares * x.largest, y.shares * y.largest
        a: Complex = (y.counts @ columns) / (real + 2j * top)
        b: Complex = (x.counts @ rows) / (real + 2j * top)
        for eta in np.geomspace(np.full(real.shape, 2 * top), NEAR_THE_AXIS * real, LEVELS):
            z = real + 1j * eta
            for _ in range(NEWTON_STEPS):
                a, b = _newton_step(a, b, z, (rows, x.counts), (columns, y.counts))
        # The trace of the shorter side, which has no zeros of its own.
        short, of_short = ((rows, x.counts), a) if len(self.x) <= len(self.y) else ((columns, y.counts), b)
        trace = (1 / (1 - np.multiply.outer(of_short, short[0]))) @ short[1] / z
        density: Array = np.maximum(-trace.imag / np.pi, 0.0)
        return density


def _newton_step(
    a: Complex, b: Complex, z: Complex, rows: tuple[Array, Array], columns: tuple[Array, Array]
) -> tuple[Complex, Complex]:
    """One step for ``z b = sum x / (1 - x a)``, ``z a = sum y / (1 - y b)``.

    Where it leaves the half-plane of the right solution, half a step of the fixed point instead.
    """
    x, x_counts = rows
    y, y_counts = columns
    of_rows = x / (1 - np.multiply.outer(a, x))
    of_columns = y / (1 - np.multiply.outer(b, y))
    b_next, a_next = of_rows @ x_counts / z, of_columns @ y_counts / z
    b_slope, a_slope = (of_rows * of_rows) @ x_counts / z, (of_columns * of_columns) @ y_counts / z
    b_miss, a_miss = b - b_next, a - a_next
    with np.errstate(all="ignore"):
        determinant = 1 - b_slope * a_slope
        newton_a, newton_b = (
            a - (a_miss + a_slope * b_miss) / determinant,
            b - (b_miss + b_slope * a_miss) / determinant,
        )
        right = (newton_a.imag <= 0) & (newton_b.imag <= 0) & np.isfinite(newton_a) & np.isfinite(newton_b)
    return np.where(right, newton_a, 0.5 * (a + a_next)), np.where(right, newton_b, 0.5 * (b + b_next))
