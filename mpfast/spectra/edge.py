"""Fitting the Marchenko-Pastur law to a spectrum."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mpfast.spectra import berlyand2026, laws
from mpfast.spectra.distribution import Measure, jackknife_error
from mpfast.support import InvalidValueError, Record, front_door

Array = NDArray[np.float64]

__all__ = ["GRAM_RESOLUTION", "SQUARES_RESOLUTION", "EdgeFit", "SpectrumLike", "fit_edge", "rounding_level"]

# Quantiles at which BEMA looks at a measured distribution; more change nothing within its noise.
QUANTILES = 512
DEFAULT_ALPHA = 0.25
GOOD_KS, FAIR_KS = 0.02, 0.05
# Relative distance of one number of a type to the next.
SPACING = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}
# The rounding of entries of one size is noise with an edge of .14 to .29 spacings times that of the entries; BEMA finds
# less where rows differ.
ROUNDING_OF_ENTRIES = (1 / 12, 1 / 3)
# Part of `sigma_plus / p` that no value of a square bulk lies below: the smallest is about an eighth.
SMALLEST_OF_BULK = 1 / 64
# Share of the largest singular value below which a computed one may be rounding, from the eigenvalues of a Gram
# operator.
GRAM_RESOLUTION = 2.0**-22
# The same for all eigenvalues of W^T W at once: zeros come out at up to 2.4 times 2^-26 s_1 (1000 x 20000).
SQUARES_RESOLUTION = 2.0**-24
VERDICTS = ("good", "fair", "poor")
SMALL_P = 64


class SpectrumLike(Protocol):
    """What a fit needs to know of a spectrum; see `mpfast.Spectrum`."""

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def fro_norm(self) -> float: ...
    @property
    def values(self) -> Array | None: ...
    @property
    def measure(self) -> Measure: ...
    @property
    def replicates(self) -> tuple[Measure, ...]: ...
    @property
    def ritz(self) -> Array: ...
    @property
    def resolved(self) -> int: ...
    @property
    def resolution(self) -> float: ...
    @property
    def rounding(self) -> float: ...
    @property
    def extra_error(self) -> float: ...
    @property
    def probes(self) -> int: ...


@dataclass(frozen=True)
class EdgeFit:
    """A fitted Marchenko-Pastur edge.

    Attributes
    ----------
    variance
        Of one entry of the noise.
    sigma_plus
        Upper edge of the law, singular-value scale: ``sqrt(variance) (sqrt(m) + sqrt(n))``.
    sigma_plus_error
        One standard error of ``sigma_plus``; 0 when every singular value is known, infinite for a single probe, and
        all of ``sigma_plus`` where that is the level of rounding: the noise may be anything from 0 up to it.
    threshold
        Tracy-Widom corrected edge, singular-value scale: pure noise exceeds it with probability ``beta``.
    spikes, spikes_above_edge
        Number of singular values above ``threshold`` and above ``sigma_plus``.
    spikes_estimated
        True when there are too many spikes to tell apart and their number comes from the distribution function.
    bulk_fraction
        ``1 - spikes / p``.
    ks
        Kolmogorov distance between spectrum and law over the central window; for a measured spectrum never below
        ``ks_floor``, what its probes can resolve.
    verdict
        ``"good"`` (ks <= 0.02), ``"fair"`` (<= 0.05) or ``"poor"``.
    trace_ratio
        Variance that the Frobenius norm implies when the spikes are taken out, over ``variance``: 1 for a clean bulk.
    estimator, alpha, beta, compat
        As given to `mpfast.Spectrum.fit`.
    warnings
        What a reader of the numbers should know.
    """

    shape: tuple[int, int]
    variance: float
    sigma_plus: float
    sigma_plus_error: float
    threshold: float
    spikes: int
    spikes_above_edge: int
    spikes_estimated: bool
    bulk_fraction: float
    ks: float
    ks_floor: float
    verdict: str
    trace_ratio: float
    estimator: str
    alpha: float
    beta: float
    compat: str | None
    warnings: tuple[str, ...]

    @property
    def law(self) -> laws.MarchenkoPastur:
        """The fitted law."""
        return laws.MarchenkoPastur(self.variance, self.shape)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        record = asdict(self)
        record["shape"], record["warnings"] = list(self.shape), list(self.warnings)
        return record

    @classmethod
    @front_door
    def from_dict(cls, record: Mapping[str, Any]) -> EdgeFit:
        """Rebuild from `to_dict`.

        Raises
        ------
        ValueError
            A field is missing, unknown or of a wrong kind: the message names it.
        """
        read = Record(record, "the fit")
        read.allow({field.name for field in fields(cls)})
        verdict = read.text("verdict")
        if verdict not in VERDICTS:
            raise read.refuse("verdict", f"one of {', '.join(VERDICTS)}")
        return cls(
            shape=read.matrix_shape("shape"),
            variance=read.measured("variance"),
            sigma_plus=read.measured("sigma_plus"),
            sigma_plus_error=read.measured("sigma_plus_error"),
            threshold=read.measured("threshold"),
            spikes=read.integer("spikes"),
            spikes_above_edge=read.integer("spikes_above_edge"),
            spikes_estimated=read.flag("spikes_estimated"),
            bulk_fraction=read.measured("bulk_fraction"),
            ks=read.measured("ks"),
            ks_floor=read.measured("ks_floor"),
            verdict=verdict,
            trace_ratio=read.measured("trace_ratio"),
            estimator=read.text("estimator"),
            alpha=read.number("alpha", 0, 1),
            beta=read.number("beta", 0, 1),
            compat=read.optional_text("compat"),
            warnings=read.texts("warnings"),
        )


def fit_edge(
    source: SpectrumLike,
    estimator: str = "bema",
    *,
    alpha: float = DEFAULT_ALPHA,
    beta: float = 0.1,
    compat: str | None = None,
) -> EdgeFit:
    """Fit the Marchenko-Pastur law; the function behind `mpfast.Spectrum.fit`, see there.

    Raises
    ------
    ValueError
        An option is out of range, the variance of an entry is no float64, or ``compat`` needs what is not there.

    References
    ----------
    Ke, Ma, Lin, "Estimation of the number of spiked eigenvalues" (BEMA), arXiv 2006.00436, with mid-point ranks; Gavish
    and Donoho, arXiv 1305.5870 (median).
    """
    if estimator not in _ESTIMATORS:
        raise InvalidValueError("estimator", f"must be one of {', '.join(map(repr, _ESTIMATORS))}, not {estimator!r}")
    if not 0 < alpha < 0.5:
        raise InvalidValueError("alpha", f"must lie in (0, 0.5), not {alpha!r}")
    if not 0 < beta < 1:
        raise InvalidValueError("beta", f"must lie in (0, 1), not {beta!r}")
    if compat not in (None, "berlyand2026"):
        raise InvalidValueError("compat", f"must be None or 'berlyand2026', not {compat!r}")
    _check_range(source)
    if compat is not None:
        return _compat_fit(source, estimator, alpha, beta)

    estimate = _ESTIMATORS[estimator]
    variance = estimate(source, source.measure, alpha)
    sigma = laws.sigma_plus(variance, source.shape)
    if sigma < source.rounding:
        return _fit_of_rounding(source, estimator, alpha, beta)
    error = _standard_error(source, estimate, alpha, sigma)
    return _assemble(source, variance, error, estimator, alpha, beta)


def _fit_of_rounding(source: SpectrumLike, estimator: str, alpha: float, beta: float) -> EdgeFit:
    """The fit of a matrix without noise: its edge is the level of rounding, and known to be no more than that."""
    level = source.rounding
    variance = (level / laws.sigma_plus(1.0, source.shape)) ** 2
    fit = _assemble(source, variance, level, estimator, alpha, beta)
    return replace(fit, sigma_plus=level, warnings=(_rank_warning(fit.spikes_above_edge),))


def _window(p: int, alpha: float) -> tuple[int, int]:
    """First and one past the last ascending index of the central window; all when it would hold fewer than 8."""
    first, last = math.floor(alpha * p), math.floor((1 - alpha) * p)
    return (first, last) if last - first >= 8 else (0, p)


def _bema(source: SpectrumLike, measure: Measure, alpha: float) -> float:
    """Least squares of central quantiles on those of the unit law, through the origin."""
    p, q = min(source.shape), max(source.shape)
    if source.values is not None:
        first, last = _window(p, alpha)
        observed = source.values[::-1][first:last] ** 2 / q
        unit = laws.unit_quantiles(p, q, first / p, last / p, last - first)
    else:
        u = alpha + (1 - 2 * alpha) * (np.arange(QUANTILES) + 0.5) / QUANTILES
        observed = measure.quantile(u) ** 2 / q
        unit = laws.unit_quantiles(p, q, alpha, 1 - alpha, QUANTILES)
    return float(unit @ observed / (unit @ unit))


def _median(source: SpectrumLike, measure: Measure, alpha: float) -> float:
    """Median of the values over the median of the unit law."""
    p, q = min(source.shape), max(source.shape)
    median = np.median(source.values) if source.values is not None else measure.quantile(0.5)
    return float(median**2 / q / laws.unit_quantiles(p, q, 0.0, 1.0, 1)[0])


def _residual(source: SpectrumLike, measure: Measure, alpha: float) -> float:
    """Frobenius norm minus the spikes, self-consistently.

    Right for a Marchenko-Pastur bulk with separate spikes; on heteroscedastic noise or trained layers the loop peels
    the continuum off and ends too low. A diagnostic there, not an edge.
    """
    m, n = source.shape
    p = min(m, n)
    total = p * measure.moment(2)
    variance = total / (m * n)
    for _ in range(100):
        edge = laws.sigma_plus(variance, source.shape)
        above = measure.nodes > edge
        count = p * float(measure.weights[above].sum())
        peeled = p * float(measure.weights[above] @ measure.nodes[above] ** 2)
        updated = (total - peeled) / ((m - count) * (n - count)) if count < p else 0.0
        if updated <= 0:  # nothing is left below the edge
            return 0.0
        if abs(updated - variance) <= 1e-12 * variance:
            break
        variance = updated
    return float(variance)


def _check_range(source: SpectrumLike) -> None:
    """Raise ValueError where the variance, a square, would leave the range of float64."""
    rows, cols = source.shape
    size = source.fro_norm / math.sqrt(rows * cols)
    if size > 0 and not 1e-152 < size < 1e152:
        raise InvalidValueError(
            "", f"the entries of W are about {size:.1g}, and a variance of their square is no float64", "scale W"
        )


def rounding_level(source: SpectrumLike) -> float:
    """What a singular value may be for the rounding of the entries, or of the computation, alone.

    Smaller ones count for nothing: not for a rank, nor as a spectrum to fit. 0 for the zero matrix.
    """
    rows, cols = source.shape
    computed = source.resolution * float(source.ritz.max(initial=0.0))
    # The edge of noise of that variance; rounding's is some three times less, but differs from entry to entry.
    stored = SPACING.get(source.dtype, 0.0) * source.fro_norm * laws.sigma_plus(1 / (rows * cols), source.shape)
    variance = _bema(source, source.measure, DEFAULT_ALPHA)
    sigma = laws.sigma_plus(variance, source.shape)
    if 0 < sigma < max(stored, computed):
        low, high = ROUNDING_OF_ENTRIES
        # A bulk that follows the law is what it is, however small; but so may the rounding of the entries.
        follows = _kolmogorov(source, variance, DEFAULT_ALPHA) <= GOOD_KS
        if follows and not low * stored < sigma < high * stored:
            return min(computed, SMALLEST_OF_BULK * sigma / min(rows, cols))
    elif stored > computed and not _is_more_than_bulk(source, variance, stored):
        return computed
    return max(stored, computed)


def _is_more_than_bulk(source: SpectrumLike, variance: float, level: float) -> bool:
    """Whether no value of a bulk should lie below ``level``, or many more do than the law has there."""
    if variance <= 0:
        return True
    p = min(source.shape)
    share = float(laws.MarchenkoPastur(variance, source.shape).cdf(level))
    below = float(source.measure.weights[source.measure.nodes <= level].sum())
    return p * share < 0.5 or below > share + GOOD_KS


def _rank_warning(rank: int) -> str:
    return (
        f"of rank {rank} but for rounding: there is no noise to fit; sigma_plus is the level of the rounding, no edge "
        "of a bulk"
    )


_ESTIMATORS: dict[str, Callable[[SpectrumLike, Measure, float], float]] = {
    "bema": _bema,
    "median": _median,
    "residual": _residual,
}


def _standard_error(
    source: SpectrumLike,
    estimate: Callable[[SpectrumLike, Measure, float], float],
    alpha: float,
    sigma: float,
) -> float:
    """Jackknife over the probes, with the error of a finite run in quadrature; singular-value scale."""
    if source.values is not None:
        return 0.0
    if source.probes == 1:  # one probe does not say how far others would scatter
        return math.inf
    extra = source.extra_error * sigma
    sigmas = [laws.sigma_plus(estimate(source, m, alpha), source.shape) for m in source.replicates]
    return math.hypot(jackknife_error(sigmas), extra)


def _count_above(source: SpectrumLike, level: float) -> tuple[int, bool]:
    """Number of singular values above ``level``, and whether it had to be read off the distribution function."""
    if source.values is not None:
        return int(np.count_nonzero(source.values > level)), False
    count = int(np.count_nonzero(source.ritz > level))
    if count <= source.resolved:
        return count, False
    p = min(source.shape)
    return max(round(p * (1 - float(source.measure.cdf(level)))), source.resolved), True


def _kolmogorov(source: SpectrumLike, variance: float, alpha: float) -> float:
    """Two-sided Kolmogorov distance over the central window."""
    p = min(source.shape)
    if variance <= 0:
        return 1.0
    law = laws.MarchenkoPastur(variance, source.shape)
    if source.values is not None:
        first, last = _window(p, alpha)
        F = law.cdf(source.values[::-1][first:last])
        i = np.arange(first, last)
        return float(np.maximum(np.abs(F - i / p), np.abs(F - (i + 1) / p)).max())
    u = np.linspace(alpha, 1 - alpha, QUANTILES)
    return float(np.abs(law.cdf(source.measure.quantile(u)) - u).max())


def _verdict(ks: float) -> str:
    return "good" if ks <= GOOD_KS else "fair" if ks <= FAIR_KS else "poor"


def _assemble(
    source: SpectrumLike, variance: float, error: float, estimator: str, alpha: float, beta: float
) -> EdgeFit:
    p = min(source.shape)
    sigma = laws.sigma_plus(variance, source.shape)
    threshold = laws.tracy_widom_threshold(variance, source.shape, beta)
    spikes, estimated = _count_above(source, threshold)
    above, _ = _count_above(source, sigma)
    floor = 0.0 if source.values is not None else 0.87 * math.sqrt(2 / (p * max(source.probes, 1)))
    ks = max(_kolmogorov(source, variance, alpha), floor)
    verdict = _verdict(ks)
    ratio = _residual(source, source.measure, alpha) / variance if variance > 0 else math.nan
    return EdgeFit(
        shape=source.shape,
        variance=variance,
        sigma_plus=sigma,
        sigma_plus_error=error,
        threshold=threshold,
        spikes=spikes,
        spikes_above_edge=above,
        spikes_estimated=estimated,
        bulk_fraction=1 - spikes / p,
        ks=ks,
        ks_floor=floor,
        verdict=verdict,
        trace_ratio=ratio,
        estimator=estimator,
        alpha=alpha,
        beta=beta,
        compat=None,
        warnings=_warnings(source, sigma, (above, spikes), estimated, ks, verdict, ratio),
    )


def _compat_fit(source: SpectrumLike, estimator: str, alpha: float, beta: float) -> EdgeFit:
    """The code of arXiv 2606.02608, bugs included."""
    if source.values is None:
        raise InvalidValueError("compat='berlyand2026'", "needs an exact spectrum: spectrum(W, method='exact')")
    if estimator != "bema":
        raise InvalidValueError("", f"compat='berlyand2026' knows only estimator='bema', not {estimator!r}")
    p = min(source.shape)
    if int(alpha * p) == int((1 - alpha) * p):
        raise InvalidValueError("compat='berlyand2026'", f"has no central values to fit among {p}")
    if not source.values.any():
        raise InvalidValueError("compat='berlyand2026'", "needs a matrix that is not zero")
    fit = berlyand2026.fit(source.values, source.shape, alpha, beta)
    sigma = laws.sigma_plus(fit.variance, source.shape)
    spikes = int(np.count_nonzero(source.values > fit.threshold))
    return EdgeFit(
        shape=source.shape,
        variance=fit.variance,
        sigma_plus=sigma,
        sigma_plus_error=0.0,
        threshold=fit.threshold,
        spikes=spikes,
        spikes_above_edge=int(np.count_nonzero(source.values > sigma)),
        spikes_estimated=False,
        bulk_fraction=1 - spikes / p,
        ks=fit.error,
        ks_floor=0.0,
        verdict=_verdict(fit.error),
        trace_ratio=math.nan,
        estimator=estimator,
        alpha=alpha,
        beta=beta,
        compat="berlyand2026",
        warnings=("compat='berlyand2026': reproduces published code including its errors",),
    )


def _warnings(
    source: SpectrumLike,
    sigma: float,
    counts: tuple[int, int],
    estimated: bool,
    ks: float,
    verdict: str,
    trace_ratio: float,
) -> tuple[str, ...]:
    """Say what the fit does not; `counts` are those above the edge and, of these, above the threshold."""
    above, spikes = counts
    m, n = source.shape
    p = min(m, n)
    found = []
    if p < SMALL_P:
        found.append(f"small: only {p} singular values, the law is asymptotic")
    # A square bulk reaches down to zero, but not below the size of its smallest value, about sigma / (8 p).
    zeros = float(source.measure.cdf(SMALLEST_OF_BULK * sigma / p)) if sigma > 0 else 1.0
    if zeros > 0.01 and zeros * p >= 2:
        found.append(
            f"already sparse or rank deficient: {zeros:.0%} of the singular values are zero, for rows or columns are "
            "zero, repeated or made of others, which biases the fit; drop those first"
        )
    share = above / p
    if above > 20 and share > 0.05:
        counted = "estimated" if estimated else "counted"
        found.append(
            f"a continuum above the edge: {above} singular values above sigma_plus ({share:.0%}, {counted}), "
            f"{spikes} of them above the threshold, which `spikes` counts; these are not separate signals"
        )
    if verdict == "poor":
        found.append(f"the bulk is not Marchenko-Pastur (KS {ks:.2f}): sigma_plus describes it, no more")
    if verdict != "good" and (m == 3 * n or n == 3 * m):
        found.append("the shape suggests fused query, key and value matrices: fit the three parts separately")
    if math.isfinite(trace_ratio) and not 0.9 <= trace_ratio <= 1.1:
        found.append(
            f"the Frobenius norm implies {trace_ratio:.2f} times the fitted variance: the noise is not homogeneous"
        )
    return tuple(found)
