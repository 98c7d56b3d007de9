"""Fitting the Marchenko-Pastur law to a spectrum."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.spectra import berlyand2026
from mpfast.spectra.distribution import Measure
from mpfast.spectra.edge_warnings import fit_warnings
from mpfast.spectra.estimators import (
    DEFAULT_ALPHA,
    ESTIMATORS,
    FAIR_KS,
    GOOD_KS,
    SpectrumLike,
    bema,
    count_above,
    distance_of_chance,
    fitted_part,
    kolmogorov,
    residual,
)
from mpfast.spectra.marchenko_pastur import MarchenkoPastur, sigma_plus
from mpfast.spectra.noise import energy_share
from mpfast.spectra.probe_noise import expected_error, jackknife_error
from mpfast.spectra.rounding import check_range, size_of_entries
from mpfast.spectra.tracy_widom import tracy_widom_threshold
from mpfast.support import InvalidValueError, Record, facts_as_html, front_door, notebook_cell, percent, with_error

Array = NDArray[np.float64]

__all__ = [
    "EdgeFit",
    "fit_edge",
    "fitted_variance",
]

VERDICTS = ("good", "fair", "poor")


@dataclass(frozen=True, repr=False)
class EdgeFit:
    """A fitted Marchenko-Pastur edge.

    Attributes
    ----------
    variance
        Of one entry of the noise.
    sigma_plus
        Upper edge of the law, singular-value scale: ``sqrt(variance) (sqrt(m) + sqrt(n))``.
    sigma_plus_error
        One standard error of ``sigma_plus``, with what scales of rows and columns leave uneven; but for that 0 when
        every singular value is known, infinite for a single probe, and all of ``sigma_plus`` where that is the level of
        rounding: the noise may be anything from 0 up to it.
    threshold
        Tracy-Widom corrected edge, singular-value scale: pure noise exceeds it with probability ``beta``.
    spikes, spikes_above_edge
        Number of singular values above ``threshold`` and above ``sigma_plus``.
    spikes_estimated
        True when there are too many spikes to tell apart and their number comes from the distribution function.
    strict
        Number of singular values above the Tracy-Widom threshold of noise that has all the energy of the matrix: they
        could not come from independent entries of its row and column scales, whatever the bulk looks like. At most
        ``spikes`` where the bulk is noise.
    bulk_fraction
        ``1 - spikes / p``.
    sigma_minus, below_edge
        Lower edge of the law, ``sqrt(variance) |sqrt(m) - sqrt(n)|``, and the number of singular values below it, zeros
        included; read off the distribution function where not all values are known.
    share
        Share of the energy ``||W||_F^2`` that is fitted noise; NaN for the zero matrix.
    unevenness
        By what share of it the edge would move if all that the energies of rows and columns differ in were noise of
        uneven scale; None where nobody has seen the entries. See `NoiseProfile`.
    ks
        Kolmogorov distance between spectrum and law over the central window; for a measured spectrum never below
        ``ks_floor``, what its probes can resolve.
    verdict
        ``"good"`` (ks <= 0.02), ``"fair"`` (<= 0.05) or ``"poor"``; also ``"poor"`` where scales of rows and columns
        were to be measured and did not settle. Of fewer than about 170 singular values the limits are what noise of so
        many values keeps in 98 of 100 matrices, ``(0.6 + 0.5 log(p)) / p``, and 2.5 times that.
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
    strict: int
    bulk_fraction: float
    sigma_minus: float
    below_edge: int
    share: float
    unevenness: float | None
    ks: float
    ks_floor: float
    verdict: str
    trace_ratio: float
    estimator: str
    alpha: float
    beta: float
    compat: str | None
    warnings: tuple[str, ...]

    def __repr__(self) -> str:
        edge = with_error(self.sigma_plus, self.sigma_plus_error)
        return f"EdgeFit({self.shape[0]}x{self.shape[1]}: sigma+ {edge}, {self.spikes} spikes, fit {self.verdict})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        facts = {
            "sigma+": with_error(self.sigma_plus, self.sigma_plus_error),
            "threshold": f"{self.threshold:.5g}",
            "spikes": f"{self.spikes} above the threshold, {self.spikes_above_edge} above the edge",
            "strict": str(self.strict),
            "standard deviation of the noise": f"{math.sqrt(self.variance):.5g}",
            "share": percent(self.share),
            "uneven": percent(self.unevenness),
            "KS": f"{self.ks:.4f}",
            "fit": self.verdict,
            "estimator": self.estimator,
        }
        return notebook_cell(facts_as_html(repr(self), facts, warnings=self.warnings))

    @property
    def law(self) -> MarchenkoPastur:
        """The fitted law."""
        return MarchenkoPastur(self.variance, self.shape)

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
            strict=read.integer("strict"),
            bulk_fraction=read.measured("bulk_fraction"),
            sigma_minus=read.measured("sigma_minus"),
            below_edge=read.integer("below_edge"),
            share=read.measured("share"),
            unevenness=read.optional_number("unevenness", 0),
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
    if estimator not in ESTIMATORS:
        raise InvalidValueError("estimator", f"must be one of {', '.join(map(repr, ESTIMATORS))}, not {estimator!r}")
    if not 0 < alpha < 0.5:
        raise InvalidValueError("alpha", f"must lie in (0, 0.5), not {alpha!r}")
    if not 0 < beta < 1:
        raise InvalidValueError("beta", f"must lie in (0, 1), not {beta!r}")
    if compat not in (None, "berlyand2026"):
        raise InvalidValueError("compat", f"must be None or 'berlyand2026', not {compat!r}")
    check_range(source)
    if compat is not None:
        return _compat_fit(source, estimator, alpha, beta)

    estimate = ESTIMATORS[estimator]
    variance = estimate(source, source.measure, alpha)
    sigma = sigma_plus(variance, source.shape)
    if sigma < source.rounding:
        return _fit_of_rounding(source, estimator, alpha, beta)
    ks = _distance(source, variance, estimator, alpha)
    error = _standard_error(source, estimate, alpha, sigma, of_noise=ks <= GOOD_KS)
    return _assemble(source, variance, error, ks, estimator, alpha, beta)


def fitted_variance(source: SpectrumLike) -> float:
    """The variance of the default fit, without the rest of it."""
    variance = bema(source, source.measure, DEFAULT_ALPHA)
    below = sigma_plus(variance, source.shape) < source.rounding
    return _variance_of_rounding(source) if below else variance


def _variance_of_rounding(source: SpectrumLike) -> float:
    """Of noise whose edge is the level of rounding."""
    return float((source.rounding / sigma_plus(1.0, source.shape)) ** 2)


def _fit_of_rounding(source: SpectrumLike, estimator: str, alpha: float, beta: float) -> EdgeFit:
    """The fit of a matrix without noise: its edge is the level of rounding, and known to be no more than that."""
    level = source.rounding
    variance = _variance_of_rounding(source)
    ks = _distance(source, variance, estimator, alpha)
    fit = _assemble(source, variance, level, ks, estimator, alpha, beta)
    return replace(fit, sigma_plus=level, warnings=(_rank_warning(fit.spikes_above_edge),))


def _rank_warning(rank: int) -> str:
    return (
        f"of rank {rank} but for rounding: there is no noise to fit; sigma_plus is the level of the rounding, no edge "
        "of a bulk"
    )


def _standard_error(
    source: SpectrumLike,
    estimate: Callable[[SpectrumLike, Measure, float], float],
    alpha: float,
    sigma: float,
    *,
    of_noise: bool,
) -> float:
    """Of the probes, with the errors of a finite run and of the scales in quadrature; same scale.

    How far probes usually scatter an edge is known ``of_noise`` alone.
    """
    scales = 0.0 if source.noise is None else source.noise.relative_error * sigma
    if source.values is not None:
        return scales
    if source.probes == 1:  # one probe does not say how far others would scatter
        return math.inf
    extra = source.extra_error * sigma if scales == 0 else math.hypot(source.extra_error * sigma, scales)
    sigmas = [sigma_plus(estimate(source, m, alpha), source.shape) for m in source.replicates]
    expected = expected_error(source.shape, source.probes) * sigma if of_noise else 0.0
    return math.hypot(jackknife_error(sigmas, expected), extra)


def _verdict(ks: float, p: int) -> str:
    """How well p singular values at this distance follow the law."""
    looser = max(distance_of_chance(p) / GOOD_KS, 1.0)
    return "good" if ks <= looser * GOOD_KS else "fair" if ks <= looser * FAIR_KS else "poor"


def _distance(source: SpectrumLike, variance: float, estimator: str, alpha: float) -> float:
    """Kolmogorov distance of the fit, no less than what the probes leave of it."""
    return max(kolmogorov(fitted_part(source, estimator, alpha), variance, alpha), _noise_of_distance(source))


def _noise_of_distance(source: SpectrumLike) -> float:
    p = min(source.shape)
    return 0.0 if source.values is not None else 0.87 * math.sqrt(2 / (p * max(source.probes, 1)))


def _assemble(
    source: SpectrumLike, variance: float, error: float, ks: float, estimator: str, alpha: float, beta: float
) -> EdgeFit:
    p = min(source.shape)
    sigma = sigma_plus(variance, source.shape)
    threshold = tracy_widom_threshold(variance, source.shape, beta)
    spikes, estimated = count_above(source, threshold)
    above, _ = count_above(source, sigma)
    verdict = _verdict(ks, min(source.shape)) if source.noise is None or not source.noise.unsettled else "poor"
    ratio = residual(source, source.measure, alpha) / variance if variance > 0 else math.nan
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
        **_beside_the_edge(source, variance, beta),
        ks=ks,
        ks_floor=_noise_of_distance(source),
        verdict=verdict,
        trace_ratio=ratio,
        estimator=estimator,
        alpha=alpha,
        beta=beta,
        compat=None,
        warnings=fit_warnings(source, sigma, (above, spikes), estimated, ks, verdict, ratio),
    )


def _beside_the_edge(source: SpectrumLike, variance: float, beta: float) -> dict[str, Any]:
    """The fields of a fit that follow from the variance alone."""
    m, n = source.shape
    whole = tracy_widom_threshold(size_of_entries(source) ** 2, source.shape, beta)
    sigma_minus = math.sqrt(variance) * abs(m - n) / (math.sqrt(m) + math.sqrt(n))
    mass, norm = (m * n, source.fro_norm) if source.noise is None else (source.noise.noise_mass, source.noise.fro_norm)
    return {
        "strict": count_above(source, whole)[0],
        "sigma_minus": sigma_minus,
        "below_edge": _count_below(source, sigma_minus),
        "share": energy_share(variance, mass, norm),
        "unevenness": None if source.noise is None else source.noise.unevenness,
    }


def _count_below(source: SpectrumLike, level: float) -> int:
    if source.values is not None:
        return int(np.count_nonzero(source.values < level))
    return round(min(source.shape) * float(source.measure.cdf(level))) if level > 0 else 0


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
    sigma = sigma_plus(fit.variance, source.shape)
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
        **_beside_the_edge(source, fit.variance, beta),
        ks=fit.error,
        ks_floor=0.0,
        verdict=_verdict(fit.error, p),
        trace_ratio=math.nan,
        estimator=estimator,
        alpha=alpha,
        beta=beta,
        compat="berlyand2026",
        warnings=("compat='berlyand2026': reproduces published code including its errors",),
    )
