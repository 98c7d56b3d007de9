"""Scalar measures of a spectrum.

Unless said otherwise a measure is a function of the singular values alone. Those that WeightWatcher users know carry
its name where the meaning is the same; its ``norm`` and ``spectral_norm`` are squared, and so are these.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mpfast.spectra.edge import EdgeFit, SpectrumLike

Array = NDArray[np.float64]

__all__ = ["hill_alpha", "spectral_metrics"]

HILL_TOP = 20


def spectral_metrics(source: SpectrumLike, fit: EdgeFit) -> dict[str, float]:
    """All measures of a spectrum, by name.

    Returns
    -------
    dict
        ``stable_rank`` = sum s^2 / s_1^2; ``entropy_rank`` = exp of the entropy of s^2 / sum s^2; ``nuclear_rank`` =
        (sum s)^2 / sum s^2; ``entropy`` = log(entropy_rank) / log(rank), the rank counting what lies above
        ``source.resolution`` of the largest value; ``hill_alpha`` and ``hill_alpha_half``: Hill
        exponents of s^2 from the top 20 and the top half; ``spike_mass`` = share of sum s^2 above the threshold;
        ``bulk_fraction``; ``s1_over_sigma_plus``; ``mp_softrank`` = sigma_plus^2 / s_1^2; ``mean_outlier_ratio`` =
        mean of s / sigma_plus over spikes; ``snr`` = spike over bulk energy; ``num_spikes``; ``norm`` = sum s^2 and
        ``spectral_norm`` = s_1^2 (both squared), with ``log_norm`` and ``log_spectral_norm`` to base 10; ``sv_max``.
    """
    p = min(source.shape)
    mean_square = source.measure.moment(2)
    norm = source.fro_norm**2
    s1 = float(source.ritz[0]) if len(source.ritz) else 0.0
    if norm <= 0 or s1 <= 0:
        return _of_zero(fit)
    share = source.measure.nodes**2 / mean_square
    positive = share > 0
    # Mass w at a node stands for p w values of s^2 / sum s^2 = share / p each.
    entropy = -float(source.measure.weights[positive] @ (share[positive] * np.log(share[positive] / p)))
    rank = p * float(source.measure.weights[source.measure.nodes > s1 * source.resolution].sum())
    spike_energy = _energy_above(source, fit.threshold)
    spikes = source.ritz[source.ritz > fit.threshold]
    bulk_energy = max(norm - spike_energy, 0.0)
    return {
        "stable_rank": norm / s1**2,
        "entropy_rank": math.exp(entropy),
        "nuclear_rank": p * source.measure.moment(1) ** 2 / mean_square,
        "entropy": entropy / math.log(rank) if rank > 1 else 0.0,
        "hill_alpha": hill_alpha(source, min(HILL_TOP, p - 1)),
        "hill_alpha_half": hill_alpha(source, p // 2),
        "spike_mass": spike_energy / norm,
        "bulk_fraction": fit.bulk_fraction,
        "s1_over_sigma_plus": s1 / fit.sigma_plus if fit.sigma_plus > 0 else math.inf,
        "mp_softrank": (fit.sigma_plus / s1) ** 2,
        "mean_outlier_ratio": float(spikes.mean() / fit.sigma_plus) if len(spikes) and fit.sigma_plus > 0 else 0.0,
        "snr": spike_energy / bulk_energy if bulk_energy > 0 else math.inf,
        "num_spikes": float(fit.spikes),
        "norm": norm,
        "log_norm": math.log10(norm),
        "spectral_norm": s1**2,
        "log_spectral_norm": 2 * math.log10(s1),
        "sv_max": s1,
    }


def hill_alpha(source: SpectrumLike, k: int) -> float:
    """Hill's exponent of the k largest ``s^2``: ``1 + 1 / mean(log(s_i^2 / s_{k+1}^2))``.

    Values that have not converged one by one come from the distribution function instead: an unconverged Ritz value
    says little about its rank. 99 when k < 2, as in the code of arXiv 2606.02608.
    """
    if k < 2:
        return 99.0
    leading = _leading(source, k + 1) ** 2
    if leading[-1] <= 0:
        return 1.0
    return 1 + 1 / max(float(np.mean(np.log(leading[:-1] / leading[-1]))), 1e-6)


def _leading(source: SpectrumLike, count: int) -> Array:
    if source.values is not None:
        return source.values[:count]
    p = min(source.shape)
    ranks = np.arange(1, count + 1)
    leading = source.measure.quantile(1 - (ranks - 0.5) / p)
    known = min(source.measure.atoms, count)
    leading[:known] = source.ritz[:known]
    return np.minimum.accumulate(leading)


def _energy_above(source: SpectrumLike, level: float) -> float:
    above = source.measure.nodes > level
    return min(source.shape) * float(source.measure.weights[above] @ source.measure.nodes[above] ** 2)


def _of_zero(fit: EdgeFit) -> dict[str, float]:
    """Measures of the zero matrix: every rank is 0, nothing else is defined."""
    names = [
        "hill_alpha",
        "hill_alpha_half",
        "s1_over_sigma_plus",
        "mp_softrank",
        "snr",
        "log_norm",
        "log_spectral_norm",
    ]
    zero = [
        "stable_rank",
        "entropy_rank",
        "nuclear_rank",
        "entropy",
        "spike_mass",
        "mean_outlier_ratio",
        "num_spikes",
        "norm",
        "spectral_norm",
        "sv_max",
    ]
    return {**dict.fromkeys(zero, 0.0), **dict.fromkeys(names, math.nan), "bulk_fraction": fit.bulk_fraction}
