"""How a spectrum is estimated: which method, how many probes and steps, and when to stop.

The kernels are in the native core; this module holds the policy. See ``docs/numerics.md`` for the measurements behind
the constants.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.errors import ConvergenceWarning
from mpfast.measure import Measure
from mpfast.options import check_seed, check_tolerance, positive_integer, thread_count
from mpfast.sources import LanczosRun, Source, start_run

if TYPE_CHECKING:
    from mpfast.spectrum import Spectrum

Array = NDArray[np.float64]

# Up to here every singular value costs no more than an estimate of their distribution.
EXACT_UP_TO = 1024
# The smallest p a block Krylov space is worth the name for.
LANCZOS_FROM = 64
INITIAL_STEPS = 12
STEP_GROWTH = 4
MAX_STEPS = 40
MAX_BASIS = 768
MAX_WIDTH = 32
MAX_PROBES = 512
# Probes times p: keeps the Kolmogorov noise 0.87 sqrt(2 / (p b)) of the measured distribution below 0.007.
PROBE_MASS = 32768
# sd(sigma_plus) / sigma_plus = EDGE_NOISE / sqrt(p b) for a noise bulk; trained layers lie up to 60 % above.
EDGE_NOISE = 0.4
# Share of `tol` that the reported error has to meet: it comes out up to a fifth low where the noise is not homogeneous.
MARGIN = 0.7
# Share of `tol` that sigma_plus may still move in the last two steps.
SETTLED = 0.25
# Share of `tol` that the rounding of fp32 products may take.
FP32_SHARE = 0.1
# A Ritz value with a smaller relative residual (scale s^2) can be counted as one singular value.
COUNTABLE = 0.1
# Settled coefficients appended to a measure; of a leave-one-out measure the spread, not the bias, is what counts.
EXTENSION = 256
REPLICATE_EXTENSION = 96


@dataclass(frozen=True)
class Request:
    """What the caller of `mpfast.spectrum` asked for, see there; ``function`` is whom error messages name."""

    method: str = "auto"
    tol: float = 5e-3
    probes: int | None = None
    steps: int | None = None
    seed: int = 0
    threads: int | None = None
    device: str | None = None
    function: str = "spectrum"

    def __post_init__(self) -> None:
        if self.method not in ("auto", "exact", "lanczos"):
            raise ValueError(f"{self.function}(): method must be 'auto', 'exact' or 'lanczos', not {self.method!r}")
        check_tolerance(self.tol, self.function)
        for name in ("probes", "steps", "threads"):
            value = getattr(self, name)
            if value is not None:
                positive_integer(value, name, self.function)
        check_seed(self.seed, self.function)

    @property
    def thread_count(self) -> int:
        """Threads for the core; 0 means its default."""
        return thread_count(self.threads, self.function)

    @property
    def fixed(self) -> bool:
        """Whether the amount of work is given rather than the accuracy."""
        return self.probes is not None or self.steps is not None


def estimate_spectrum(source: Source, request: Request) -> Spectrum:
    """Measure the spectrum of an open source as requested; its ``threads`` and ``device`` are its own."""
    p = min(source.shape)
    if request.method == "lanczos" and p < LANCZOS_FROM:
        raise ValueError(
            f"{request.function}(): method='lanczos' needs min(W.shape) >= {LANCZOS_FROM}, got {source.shape}; "
            "use method='exact'"
        )
    wants_exact = (
        request.method == "auto" and not request.fixed and _exact_is_cheaper(source, _first_probes(p, request))
    )
    if request.method == "exact" or p < LANCZOS_FROM or wants_exact:
        return exact_spectrum(source, request)
    return lanczos_spectrum(source, request)


def exact_spectrum(source: Source, request: Request) -> Spectrum:
    """Every singular value."""
    from mpfast.spectrum import Spectrum

    values, fro_norm = source.singular_values()
    return Spectrum.from_values(
        values, source.shape, dtype=source.dtype, device=source.device, fro_norm=fro_norm, seed=int(request.seed)
    )


def lanczos_spectrum(source: Source, request: Request) -> Spectrum:
    """Block Lanczos quadrature, grown until the requested accuracy holds."""
    p = min(source.shape)
    probes = int(request.probes) if request.probes is not None else _first_probes(p, request)
    session = _Session(source, request, precise=False)
    session.add_probes(probes)
    if session.needs_double():
        session = _Session(source, request, precise=True)
        session.add_probes(probes)

    while True:
        if request.steps is None:
            session.settle()
        result = session.spectrum()
        if request.fixed:
            return result
        relative_error = result.edge.sigma_plus_error / result.edge.sigma_plus if result.edge.sigma_plus > 0 else 0.0
        if relative_error <= MARGIN * request.tol:
            return result
        more = session.probes_missing(relative_error)
        if request.method == "auto" and _exact_is_cheaper(source, more):
            return exact_spectrum(source, request)
        more = min(more, MAX_PROBES - session.probes)
        if more < 1 and relative_error <= request.tol:
            return result
        if more < 1:
            warnings.warn(
                f"{request.function}(): tol={request.tol:g} was not met: sigma_plus of the {source.shape[0]} x "
                f"{source.shape[1]} matrix has a relative standard error of {relative_error:.2g} after "
                f"{session.probes} probes and {session.steps} steps; method='exact' gives it without error",
                ConvergenceWarning,
                stacklevel=4,
            )
            return result
        session.add_probes(more)


def _first_probes(p: int, request: Request) -> int:
    """Probes to start with: for `tol` with some reserve, and for a usable distribution."""
    for_tol = (EDGE_NOISE / (0.75 * request.tol)) ** 2 / p
    wanted = max(for_tol, PROBE_MASS / p, 4.0)
    return min(4 * math.ceil(wanted / 4), MAX_PROBES)


def _exact_is_cheaper(source: Source, probes: int) -> bool:
    """Whether all singular values cost less than ``probes`` probes, in time and within a sane amount of memory."""
    p, q = min(source.shape), max(source.shape)
    if p <= EXACT_UP_TO:
        return True
    # Multiply-adds: fp64 Gram and reduction, the latter about twice as slow; fp32 products on both sides.
    exact = 2.0 * q * p * p + 8.0 * p**3
    lanczos = 4.0 * q * p * INITIAL_STEPS * probes / 2 + 4.0 * p * (INITIAL_STEPS * min(probes, MAX_WIDTH)) ** 2
    return exact < lanczos and 8 * p * p < 2**32


class _Session:
    """Block Lanczos runs over one source, all at the same number of steps; each has its own stream of probes."""

    def __init__(self, source: Source, request: Request, *, precise: bool) -> None:
        self.source = source
        self.request = request
        self.precise = precise
        self.runs: list[LanczosRun] = []
        self.settling = 0.0
        self._trace: float | None = None
        self._ritz: dict[tuple[int, int], tuple[Array, Array, Array]] = {}  # by run and steps
        self._after: dict[tuple[int, int], Spectrum] = {}  # by number of runs and steps

    @property
    def probes(self) -> int:
        return sum(run.width for run in self.runs)

    @property
    def steps(self) -> int:
        return min(run.steps for run in self.runs)

    @property
    def dim(self) -> int:
        """Number of singular values that are not known to be zero."""
        return min(self.source.shape) - self.runs[0].zero_coordinates

    def add_probes(self, count: int) -> None:
        """Start runs for ``count`` more probes, in blocks of equal width, and bring them up to the others."""
        p = min(self.source.shape)
        first_steps = self.request.steps or min(INITIAL_STEPS, p // 2 // 4)
        steps = self.steps if self.runs else int(first_steps)
        widest = max(1, min(MAX_WIDTH, p // 2 // steps))
        blocks = math.ceil(count / widest)
        for width in _split(count, blocks):
            seed, function = int(self.request.seed), self.request.function
            self.runs.append(
                start_run(self.source, width, seed, len(self.runs), steps, precise=self.precise, function=function)
            )

    def advance(self, steps: int) -> None:
        for run in self.runs:
            run.advance(steps)

    def settle(self) -> None:
        """Take further steps until sigma_plus and the number of spikes stand still."""
        width = max(run.width for run in self.runs)
        limit = min(MAX_STEPS, MAX_BASIS // width, min(self.source.shape) // 2 // width)
        while self.steps > 2:  # fewer: the space has closed, nothing is left to settle
            now = self.after(self.steps)
            before = self.after(self.steps - 2)
            reference = now.edge.sigma_plus
            counted = now.edge.spikes <= now.resolved
            # As long as the spikes cannot be counted the edge may stand still by chance, on its way past a wrong value:
            # then it is compared with two earlier ones.
            earlier = [before] if counted else [before, self.after(max(self.steps - 5, 2))]
            moved = [abs(spectrum.edge.sigma_plus / reference - 1) for spectrum in earlier if reference > 0]
            self.settling = max(moved, default=0.0)
            steady = self.settling <= SETTLED * self.request.tol and (
                not counted or now.edge.spikes == before.edge.spikes
            )
            done = all(run.exhausted for run in self.runs)
            if steady or done or self.steps >= limit:
                return
            self.advance(min(STEP_GROWTH, limit - self.steps))

    def needs_double(self) -> bool:
        """Whether the leading value is so large that fp32 products leave too few digits for the bulk.

        The bulk's trace is a difference: ``||W||_F^2`` less the leading values, each good to a few fp32 roundings.
        """
        if self.precise or self.source.dtype == "float64":
            return False
        now = self.after(self.steps)
        if now.edge.sigma_plus <= 0:
            return True
        ratio = float(now.ritz[0] / now.edge.sigma_plus) ** 2
        return 4e-6 * ratio / self.dim > FP32_SHARE * self.request.tol

    def probes_missing(self, relative_error: float) -> int:
        """How many more probes bring the error down to tol, a tenth in reserve; 0 when probes are not what is short."""
        from_probes = relative_error**2 - (0.5 * self.settling) ** 2
        allowed = (MARGIN * self.request.tol) ** 2 - (0.5 * self.settling) ** 2
        if allowed <= 0:
            return 0
        return 4 * math.ceil(self.probes * (1.1 * from_probes / allowed - 1) / 4)

    def spectrum(self) -> Spectrum:
        """What all steps of all runs say, with what its error follows from."""
        replicates: tuple[Measure, ...] = ()
        if self.probes > 1:
            blocks = self._blocks(self.steps)
            dropped = range(self.probes)
            replicates = self._measures(
                blocks, self._squared_norm(blocks), extension=REPLICATE_EXTENSION, dropped=dropped
            )
        return replace(self.after(self.steps), replicates=replicates, settling=self.settling)

    def after(self, steps: int) -> Spectrum:
        """What the first ``steps`` steps of all runs say, without an error; asked for several times."""
        key = (len(self.runs), steps)
        if key not in self._after:
            self._after[key] = self._spectrum_after(steps)
        return self._after[key]

    def _spectrum_after(self, steps: int) -> Spectrum:
        from mpfast.spectrum import Spectrum

        blocks = self._blocks(steps)
        trace = self._squared_norm(blocks)
        (measure,) = self._measures(blocks, trace, extension=EXTENSION)
        unit = 2.0**self.source.scale_exponent
        ritz, residuals = (unit * values for values in _leading(blocks))
        atoms = measure.atoms
        return Spectrum(
            shape=self.source.shape,
            dtype=self.source.dtype,
            device=self.source.device,
            method="lanczos",
            fro_norm=math.sqrt(trace) * unit,
            measure=measure,
            seed=int(self.request.seed),
            probes=self.probes,
            steps=steps,
            passes=sum(run.steps for run in self.runs),
            outliers=ritz[:atoms],
            residuals=residuals[:atoms],
            ritz=ritz,
            resolved=_resolved(blocks),
            fro_norm_exact=self.source.exact_norm,
            zero_fraction=self.runs[0].zero_coordinates / min(self.source.shape),
        )

    def _blocks(self, steps: int) -> list[Any]:
        """Ritz values, residuals and weights of every run, its steps, and whether its space has closed."""
        blocks: list[Any] = []
        for stream, run in enumerate(self.runs):
            at = min(steps, run.steps)
            blocks.append((*self._ritz_values(stream, at), at, run.exhausted and at == run.steps))
        return blocks

    def _ritz_values(self, stream: int, steps: int) -> tuple[Array, Array, Array]:
        """Of a run after ``steps`` steps; further steps do not change them."""
        if (stream, steps) not in self._ritz:
            self._ritz[stream, steps] = self.runs[stream].ritz(steps)
        return self._ritz[stream, steps]

    def _squared_norm(self, blocks: list[Any]) -> float:
        """Trace of the scaled Gram operator: from the first pass, from the source, or estimated from the probes."""
        if self._trace is None:
            self._trace = self.source.squared_norm(self.runs[0].stats[0])
        if self._trace is not None:
            return self._trace
        first_moment = sum(float((weight @ theta).sum()) for theta, _, weight, *_ in blocks)
        mass = sum(float(weight.sum()) for _, _, weight, *_ in blocks)
        return self.dim * first_moment / mass

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


def _split(count: int, parts: int) -> list[int]:
    """Cut ``count`` into ``parts`` nearly equal widths."""
    return [count // parts + (i < count % parts) for i in range(parts)]


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
