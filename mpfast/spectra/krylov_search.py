"""The search of a block Krylov space: how far it grows, and when its leading Ritz pairs are looked at."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.operators import LanczosRun, Source, start_run
from mpfast.spectra.ritz_errors import EQUAL, angles, error_bounds, groups, may_hide_equal_ones, relative_errors
from mpfast.spectra.triplets import Basis, Wanted, unmet_tolerance

Array = NDArray[np.float64]

# A bound of the error beyond which the first look was far too early.
NEAR = 3e-2
# From the second look on, Ritz values are looked at each time the basis has grown by at most this factor.
CHECK_GROWTH = 1.25
# Up to this width of a block a glimpse of the last wanted value costs one to two steps; all Ritz values cost as much as
# five to forty.
GLIMPSES_UP_TO = 8
# Of the steps that the rate of convergence asks for, take this share before looking again: the rate itself rises.
CAUTION = 0.75
# The widest block, which the runs have that look for equal singular values; and how many of these there may be.
WIDEST = 32
MAX_FURTHER_RUNS = 64
# (s_1 / s_k)^2 beyond which fp32 products lose the small end: 1e6 fp32 roundings are 6 %.
FP32_RANGE = 1e6


class KrylovSearch:
    """Grows a block Krylov space until the wanted Ritz values stand."""

    def __init__(self, source: Source, width: int, seed: int, threads: int, wanted: Wanted) -> None:
        self.source = source
        self.width = width
        self.seed = seed
        self.threads = threads
        self.wanted = wanted
        self.tol = wanted.tol
        self.k = wanted.k
        self.precise = False  # whether the last run had fp64 products
        self.unmet = ""  # where the largest basis fell short of tol

    def run(self, *, precise: bool) -> Basis:
        """Leading Ritz pairs; ``precise`` asks for fp64 products."""
        self.precise = precise
        self.unmet = ""
        basis, theta = self._grow(self.width, 0, precise=precise)
        count = len(basis.vectors)
        if not precise and count > 0 and theta[0] > FP32_RANGE * theta[count - 1]:
            return self.run(precise=True)
        if count < (self.k or 0) or may_hide_equal_ones(theta[: count + self.width - 1], self.width):
            basis = self._with_all_equal_ones(basis, precise=precise)
        return replace(basis, unmet=self.unmet)

    def _grow(self, width: int, stream: int, *, precise: bool) -> tuple[Basis, Array]:
        """The wanted Ritz pairs of a run of its own, and its leading Ritz values (scale s^2), some more than wanted."""
        run, self.source = start_run(self.source, width, self.seed, stream, 1, precise=precise)
        p = min(self.source.shape)
        limit = p // width
        steps, second = (min(look, limit) for look in _first_looks(self.wanted.expected / width))
        previous, before = -1, (0, 0.0)
        while True:
            run.advance(steps - run.steps)
            early = steps < second
            count, glimpsed = self._glimpse(run, early=early)
            missing = glimpsed
            last = run.exhausted or steps >= limit
            if last or glimpsed <= self.tol:
                # What is judged by others looks at those up to three blocks further down.
                theta, residual, _ = run.ritz(count=None if self.k is None else self.k + 3 * width + 1)
                count = self._count(theta)
                worst = float(self._errors(theta, residual, count, width, early=early).max(initial=0.0))
                missing = max(worst, self._as_error(theta, residual, count))
                counted = self.k is not None or count == previous
                if counted and missing <= self.tol and count < len(theta):
                    break
                if last:
                    if worst > self.tol and not run.exhausted:
                        self._falls_short(f"with a basis of {run.steps * width} vectors", count, worst)
                    break
            glimpsed = glimpsed or missing
            more = math.ceil((CHECK_GROWTH - 1) * steps)
            if early and missing > NEAR:
                more = second - steps
            elif 0 < glimpsed < before[1] and count == previous:
                rate = math.log(before[1] / glimpsed) / (steps - before[0])
                more = min(more, math.ceil(CAUTION * math.log(missing / self.tol) / rate))
            previous, before = count, (steps, glimpsed)
            steps = min(steps + max(more, 1), limit)
        count = min(count, len(theta))
        vectors = run.ritz_vectors(count) if count > 0 else np.empty((0, p))
        return Basis(vectors, residual[:count], _at(theta, count), _at(theta + residual, count)), theta

    def _glimpse(self, run: LanczosRun, *, early: bool) -> tuple[int, float]:
        """How many Ritz values are wanted, and the error of the last of them, which is about the largest.

        At a small share of the cost of all of them. Where there is no glimpse, which is cheap for narrow blocks alone,
        the error is 0: a decomposition has to tell.
        """
        width, size = run.width, run.steps * run.width
        if width > GLIMPSES_UP_TO:
            return 0, 0.0
        floor = self.wanted.floor * 2.0**-self.source.scale_exponent
        count = run.values_above(floor**2) if self.k is None else self.k
        if count < 1 or count + 3 * width > size:
            return count, 0.0
        first = max(count - max(width - 1, 1), 0)
        theta = run.values_at([*range(first, count + width), count - 1 + 3 * width])
        residuals = np.full(count - first, run.residual_near(theta[count - first - 1]))
        error = float(self._errors(theta, residuals, count - first, width, early=early)[-1])
        return count, error if math.isfinite(error) else 0.0

    def _errors(self, theta: Array, residual: Array, count: int, width: int, *, early: bool) -> Array:
        """Relative errors of singular values."""
        # What a small basis shows may stand before a close neighbour has appeared: there only the bound counts.
        return (error_bounds if early else relative_errors)(theta, residual, count, width)

    def _as_error(self, theta: Array, residual: Array, count: int) -> float:
        """The worst angle as an error of values: as many times `tol` as it is of `vectors_tol`.

        Further steps are no help to the last group where it goes on beyond what is wanted.
        """
        if self.wanted.vectors_tol is None or not 0 < count < len(theta):
            return 0.0
        s = np.sqrt(theta[:count])
        left = np.divide(residual[:count], s, out=np.zeros(count), where=s > 0)
        found = angles(s, left, math.sqrt(_at(theta + residual, count)), self.tol)
        if s[-1] - math.sqrt(theta[count]) <= self.tol * s[-1]:
            found = found[: groups(s, self.tol)[-1]]
        return self.tol * float(found.max(initial=0.0)) / self.wanted.vectors_tol

    def _count(self, theta: Array) -> int:
        return self.wanted.count(theta, self.source.scale_exponent)

    def _with_all_equal_ones(self, basis: Basis, *, precise: bool) -> Basis:
        """Join runs from other probes, which see other vectors of equal singular values, until none adds any.

        A Krylov space has at most as many vectors of one singular value as its block is wide.
        """
        vectors, previous = basis.vectors, np.empty(0)
        for stream in range(1, MAX_FURTHER_RUNS + 1):
            found = self._grow(WIDEST, stream, precise=precise)[0].vectors
            joined = _core.orthonormal_rows(np.concatenate([vectors, found]).astype(np.float64), self.threads)[0]
            theta, right, residual = self._rayleigh_ritz(joined.astype(vectors.dtype))
            count = min(self._count(theta), len(theta))
            beyond = _at(theta, count)
            vectors, theta, residual = right[:count], theta[:count], residual[:count]
            same = len(theta) == len(previous) and np.allclose(theta, previous, rtol=self.tol, atol=0)
            if (same and count >= (self.k or 0)) or len(joined) >= min(self.source.shape):
                break
            previous = theta
        else:
            self._falls_short(f"in {MAX_FURTHER_RUNS} runs, each of which found further equal ones", count, EQUAL)
        return Basis(vectors, residual, beyond)

    def _rayleigh_ritz(self, basis: NDArray[Any]) -> tuple[Array, NDArray[Any], Array]:
        """Ritz values (scale s^2), vectors and residuals of the Gram operator in the span of an orthonormal basis."""
        tall = self.source.shape[0] >= self.source.shape[1]
        image = self.source.multiply(basis, transpose=not tall)
        s, left, vectors = _core.singular_rotation(
            basis.astype(np.float64), np.ascontiguousarray(image, dtype=np.float64), self.threads
        )
        product = s[:, None] * self.source.multiply(left, transpose=tall)
        residual = np.linalg.norm(product - (s**2)[:, None] * vectors, axis=1)
        return s**2, vectors.astype(basis.dtype), residual

    def _falls_short(self, where: str, count: int, worst: float) -> None:
        self.unmet = unmet_tolerance(where, count, worst)


def _at(theta: Array, count: int) -> float:
    """The value after the first ``count``; 0 where there is none."""
    return max(float(theta[count]), 0.0) if count < len(theta) else 0.0


def _first_looks(wanted: float) -> tuple[int, int]:
    """Steps before the first and the second look at Ritz values, for so many blocks of wanted ones.

    Spikes well above the bulk are found in a dozen steps, values at its edge in several times as many; of many wanted
    values most are spikes.
    """
    return math.ceil(1.25 * wanted) + 6, math.ceil(min(3.5 * wanted + 8, 2.5 * wanted + 24))
