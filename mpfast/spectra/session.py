"""The Lanczos runs behind one estimate, grown together until what was asked for holds.

See ``docs/numerics.md`` for the measurements behind the constants.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.operators import PART_WIDTH, Source
from mpfast.spectra.distribution import Measure
from mpfast.spectra.measured import Spectrum
from mpfast.spectra.probe_runs import ProbeRuns
from mpfast.spectra.repeated import EQUAL, NEAR, ZERO_FP64, Atoms, atoms_of, closeness
from mpfast.spectra.request import Request
from mpfast.spectra.rounding import GRAM_RESOLUTION

__all__ = ["Session"]

Array = NDArray[np.float64]

# Further steps are taken that many at a time.
STEP_GROWTH = 4
# Up to here the edge goes up and down from step to step.
FEW_STEPS = 4
# Share of `tol` that the reported error has to meet: it comes out up to a fifth low where the noise is not homogeneous.
MARGIN = 0.95
# Share of `tol` that sigma_plus may still move in the last two steps.
SETTLED = 0.25
# Share of `tol` that the rounding of fp32 products may take.
FP32_SHARE = 0.1
# A Ritz value with a smaller relative residual (scale s^2) can be counted as one singular value.
COUNTABLE = 0.1
# Settled coefficients appended to a measure; of a leave-one-out measure the spread, not the bias, is what counts.
EXTENSION = 256
REPLICATE_EXTENSION = 96
# Share of the trace that rounding may leave when every singular value but zeros has been found.
COMPLETE = 1e-4
COMPLETE_FP64 = 1e-9  # of fp64 products
# Residual (scale s^2, relative) up to which a Ritz value is a singular value's where the space has closed.
FOUND = 1e-3
# The last block of Ritz values lies so far below that three blocks before it (scale s^2) only where a gap is between
# zeros and the rest. Of a square bulk, which reaches down to zero, it lies some 25 to 60 times below, whatever the
# number of steps.
GAP_ABOVE_ZEROS = 500.0


class Session(ProbeRuns):
    """The runs behind one estimate, and what they say of the spectrum."""

    def __init__(self, source: Source, request: Request, *, precise: bool, part_width: int = PART_WIDTH) -> None:
        super().__init__(source, request, precise=precise, part_width=part_width)
        self.settling = 0.0
        self._atoms: dict[tuple[int, int], Atoms | None] = {}  # by number of runs and steps
        self._after: dict[tuple[int, int], Spectrum] = {}  # by number of runs and steps

    def settle(self) -> None:
        """Take further steps until sigma_plus and the number of spikes stand still."""
        if self.atoms is not None:
            return
        limit = self.most_steps
        while self.steps > 2:  # fewer: the space has closed, nothing is left to settle
            now = self.after(self.steps)
            before = self.after(self.steps - 2)
            counted = now.edge.spikes <= now.resolved
            # As long as the spikes cannot be counted the edge may stand still by chance, on its way past a wrong value:
            # then it is compared with two earlier ones.
            earlier = {self.steps - 2} if counted else {self.steps - 2, max(self.steps - 5, 2)}
            self.settling = self._moved_since(earlier)
            steady = (
                self.settling <= SETTLED * self.request.tol
                and (not counted or now.edge.spikes == before.edge.spikes)
                and not self.hides_values()
            )
            done = all(run.exhausted for run in self.runs)
            if steady or done or self.steps >= limit or self.atoms is not None:
                return
            self.advance(min(STEP_GROWTH, limit - self.steps))

    def compare_steps(self) -> None:
        """Note by how much the edge still moves where the number of steps was given.

        In its first steps it goes up and down, and two may agree by chance: the farthest counts. Of one step nothing
        says how far off it is.
        """
        if self.atoms is not None or all(run.exhausted for run in self.runs):
            return
        earlier = range(1, self.steps) if self.steps <= FEW_STEPS else (self.steps - 2,)
        self.settling = self._moved_since(earlier) if self.steps > 1 else 1.0

    def _moved_since(self, earlier: Iterable[int]) -> float:
        """How far sigma_plus was from what it is now, relatively, after fewer steps."""
        now = self.after(self.steps).edge.sigma_plus
        if now <= 0:
            return 0.0
        return max(abs(self.after(steps).edge.sigma_plus / now - 1) for steps in earlier)

    def needs_double(self) -> bool:
        """Whether the leading value is so large that fp32 products leave too few digits for the bulk.

        The bulk's trace is a difference: ``||W||_F^2`` less the leading values, each good to a few fp32 roundings.
        """
        if self.in_double:
            return False
        now = self.after(self.steps)
        if now.edge.sigma_plus <= 0:
            return True
        ratio = float(now.ritz[0] / now.edge.sigma_plus) ** 2
        # Equal values of the bulk have to stand out from the rounding, too, to be told from zeros.
        return 4e-6 * ratio / self.dim > FP32_SHARE * self.request.tol or EQUAL * ratio > FP32_SHARE

    def probes_missing(self, relative_error: float, margin: float = MARGIN) -> int:
        """How many more probes bring the error down to a share of tol; 0 when probes are not what is short.

        A tenth is in reserve.
        """
        from_probes = relative_error**2 - (0.5 * self.settling) ** 2
        allowed = (margin * self.request.tol) ** 2 - (0.5 * self.settling) ** 2
        if allowed <= 0:
            return 0
        return 4 * math.ceil(self.probes * (1.1 * from_probes / allowed - 1) / 4)

    def values_repeat(self) -> bool:
        """Whether singular values are equal, or so close to each other that a block cannot show how many there are."""
        blocks = self.blocks(self.steps)
        return closeness(blocks, self._zero) <= NEAR and not self._complete(blocks)

    def shows_zeros(self) -> bool:
        """Whether singular values are zero that no zero row or column accounts for, beside a spectrum to fit.

        Where all but zeros have been found, and the edge is the level of rounding, nothing is left to estimate.
        """
        blocks = self.blocks(self.steps)
        if self.atoms is not None:
            return False
        gap = any(
            len(theta) >= 4 * len(weight) and GAP_ABOVE_ZEROS * theta[-len(weight)] < theta[-4 * len(weight)]
            for theta, _, weight, *_ in blocks
        )
        now = self.after(self.steps)
        return gap and not (self._complete(blocks) and now.edge.sigma_plus <= now.rounding)

    def spectrum(self) -> Spectrum:
        """What all steps of all runs say, with what its error follows from."""
        replicates: tuple[Measure, ...] = ()
        blocks = self.blocks(self.steps)
        atoms = self.atoms
        if atoms is not None and self.after(self.steps).values is None:
            unit = 2.0**self.source.scale_exponent
            zeros, p = self.runs[0].zero_coordinates, min(self.source.shape)
            replicates = tuple(
                _with_zeros(atoms.measure(self.dim, unit, probe), zeros, p) for probe in range(self.probes)
            )
        elif self.probes > 1 and self._rank(blocks) is None:
            dropped = range(self.probes)
            replicates = self._measures(
                blocks, self.squared_norm(blocks), extension=REPLICATE_EXTENSION, dropped=dropped
            )
        # Values closer than that are one value to the run, and where in between they lie it cannot tell.
        close = closeness(blocks, self._zero) if self.values_repeat() and atoms is None else 0.0
        return replace(self.after(self.steps), replicates=replicates, settling=max(self.settling, min(close, NEAR)))

    def after(self, steps: int) -> Spectrum:
        """What the first ``steps`` steps of all runs say, without an error; asked for several times."""
        key = (len(self.runs), steps)
        if key not in self._after:
            self._after[key] = self._spectrum_after(steps)
        return self._after[key]

    @property
    def atoms(self) -> Atoms | None:
        """The few distinct values of the spectrum, where the runs show that there are no others.

        They are taken where they first show: after the space has closed rounding goes on to make up others.
        """
        key = (len(self.runs), self.steps)
        if key not in self._atoms:
            blocks = self.blocks(self.steps)
            repeat = closeness(blocks, self._zero) <= EQUAL and not self._complete(blocks)
            found = (atoms_of(self.blocks(steps), self._zero) for steps in range(1, self.steps + 1 if repeat else 1))
            self._atoms[key] = next((atoms for atoms in found if atoms is not None), None)
        return self._atoms[key]

    def hides_values(self) -> bool:
        """Whether singular values repeat and not all of the distinct ones have been found."""
        blocks = self.blocks(self.steps)
        return closeness(blocks, self._zero) <= EQUAL and not self._complete(blocks) and self.atoms is None

    @property
    def _zero(self) -> float:
        return ZERO_FP64 if self.in_double else EQUAL

    def _complete(self, blocks: list[Any]) -> bool:
        """Whether the Ritz values of a run add up to the trace: then each counts once, and the others are zero."""
        missing = COMPLETE_FP64 if self.in_double else COMPLETE
        return max(float(theta.sum()) for theta, *_ in blocks) >= (1 - missing) * self.squared_norm(blocks)

    def _rank(self, blocks: list[Any]) -> int | None:
        """How many values are more than rounding, where a run has found all of them: they hold the trace."""
        size = min(len(theta) for theta, *_ in blocks)
        for block in blocks:
            theta, residual = block[:2]
            rank = int(np.count_nonzero(theta > GRAM_RESOLUTION**2 * theta[0]))
            found = rank <= size and rank < len(theta) and bool(np.all(residual[:rank] <= FOUND * theta[:rank]))
            if found and rank > 0 and self._complete([block]):
                return rank
        return None

    def _spectrum_after(self, steps: int) -> Spectrum:
        blocks = self.blocks(steps)
        if self.atoms is not None:
            return self._spectrum_of(self.atoms, blocks, steps)
        unit = 2.0**self.source.scale_exponent
        ritz, residuals = (unit * values for values in _leading(blocks))
        rank = self._rank(blocks)
        if rank is None:
            (measure,) = self._measures(blocks, self.squared_norm(blocks), extension=EXTENSION)
            resolved = _resolved(blocks)
        else:
            p = min(self.source.shape)
            measure = Measure(np.concatenate([ritz[:rank], np.zeros(p - rank)]), np.full(p, 1 / p), rank)
            resolved = rank
        found = self._estimated(measure, ritz, resolved, blocks, steps)
        return replace(found, outliers=ritz[: measure.atoms], residuals=residuals[: measure.atoms])

    def _spectrum_of(self, atoms: Atoms, blocks: list[Any], steps: int) -> Spectrum:
        """The spectrum of few distinct values: all of them where number and trace tell their multiplicities."""
        zeros = self.runs[0].zero_coordinates
        unit = 2.0**self.source.scale_exponent
        trace = self.squared_norm(blocks)
        known = atoms.all_values(self.dim, trace) if self.source.exact_norm else None
        if known is None:
            measure = _with_zeros(atoms.measure(self.dim, unit), zeros, min(self.source.shape))
            return self._estimated(measure, np.sqrt(atoms.theta) * unit, 0, blocks, steps)
        values = np.concatenate([np.sqrt(known) * unit, np.zeros(zeros)])
        exact = Spectrum.from_values(
            values,
            self.source.shape,
            dtype=self.source.dtype,
            device=self.source.device,
            seed=self.request.seed,
            resolution=GRAM_RESOLUTION,
        )
        return replace(exact, fro_norm=math.sqrt(trace) * unit, passes=sum(run.steps for run in self.runs))

    def _estimated(self, measure: Measure, ritz: Array, resolved: int, blocks: list[Any], steps: int) -> Spectrum:
        return Spectrum(
            shape=self.source.shape,
            dtype=self.source.dtype,
            device=self.source.device,
            method="lanczos",
            fro_norm=math.sqrt(self.squared_norm(blocks)) * 2.0**self.source.scale_exponent,
            measure=measure,
            seed=int(self.request.seed),
            probes=self.probes,
            steps=steps,
            passes=sum(run.steps for run in self.runs),
            ritz=ritz,
            resolved=resolved,
            fro_norm_exact=self.source.exact_norm,
            zero_fraction=self.runs[0].zero_coordinates / min(self.source.shape),
        )

    def _measures(
        self, blocks: list[Any], trace: float, *, extension: int, dropped: Sequence[int] = (-1,)
    ) -> tuple[Measure, ...]:
        """One measure for each of ``dropped``: without that probe (-1: of all probes)."""
        measures = _core.spectral_measures(
            blocks,
            trace,
            self.dim,
            max(self.source.shape),
            exact_trace=self.source.exact_norm,
            extension=extension,
            dropped_probes=list(dropped),
            threads=self.request.thread_count,
        )
        unit = 2.0**self.source.scale_exponent
        zeros, p = self.runs[0].zero_coordinates, min(self.source.shape)
        return tuple(
            _with_zeros(Measure(np.sqrt(nodes) * unit, weights, int(atoms)), zeros, p)
            for nodes, weights, atoms, _ in measures
        )


def _leading(blocks: list[Any]) -> tuple[Array, Array]:
    """Best Ritz values over all runs and bounds of their errors, on the singular-value scale.

    Every Ritz value is a lower bound, so the largest of a rank is the best.
    """
    size = min(len(block[0]) for block in blocks)
    theta = np.stack([block[0][:size] for block in blocks])
    residual = np.stack([block[1][:size] for block in blocks])
    best = theta.argmax(axis=0)
    rank = np.arange(size)
    s = np.sqrt(theta[best, rank])
    bound = np.divide(residual[best, rank], 2 * s, out=np.zeros(size), where=s > 0)
    return s, bound


def _resolved(blocks: list[Any]) -> int:
    """How many leading Ritz values can be counted one by one: those that have settled, and a block more."""
    best = 0
    for theta, residual, weight, *_ in blocks:
        settled = residual < COUNTABLE * theta
        prefix = len(theta) if settled.all() else int(settled.argmin())
        best = max(best, min(prefix + len(weight), len(theta) // 3))
    return best


def _with_zeros(measure: Measure, zeros: int, p: int) -> Measure:
    """Add ``zeros`` singular values that are exactly zero, in small portions so that the CDF jumps at zero."""
    if zeros == 0:
        return measure
    portions = min(zeros, 64)
    return replace(
        measure,
        nodes=np.concatenate([measure.nodes, np.zeros(portions)]),
        weights=np.concatenate([measure.weights * ((p - zeros) / p), np.full(portions, zeros / p / portions)]),
    )
