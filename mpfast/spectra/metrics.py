"""Scalar measures of a spectrum, beside those that stand in the fit.

Every number has one name and is on the singular-value scale, not squared. WeightWatcher's names, some of which are
squares, belong to `mpfast.integrations.weightwatcher`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mpfast.spectra.edge import EdgeFit
from mpfast.spectra.estimators import SpectrumLike

Array = NDArray[np.float64]

__all__ = ["METRICS", "hill_alpha", "spectral_metrics"]

HILL_TOP = 20
# Of the zero matrix every rank is 0, and a ratio or an exponent is not defined.
_OF_ZERO = {
    "spectral_norm": 0.0,
    "stable_rank": 0.0,
    "entropy_rank": 0.0,
    "nuclear_rank": 0.0,
    "entropy": 0.0,
    "hill_alpha": math.nan,
    "hill_alpha_half": math.nan,
    "spike_mass": 0.0,
    "s1_over_sigma_plus": math.nan,
    "mean_outlier_ratio": 0.0,
}
_BY_EDGE = ("spike_mass", "s1_over_sigma_plus", "mean_outlier_ratio")
#: The names of all measures, in their order.
METRICS = tuple(_OF_ZERO)


def spectral_metrics(source: SpectrumLike, fit: EdgeFit | None) -> dict[str, float]:
    """All measures of a spectrum, by name.

    Returns
    -------
    dict
        ``spectral_norm`` = s_1, the largest singular value; ``stable_rank`` = sum s^2 / s_1^2; ``entropy_rank`` = exp
        of the entropy of s^2 / sum s^2; ``nuclear_rank`` = (sum s)^2 / sum s^2; ``entropy`` = log(entropy_rank) /
        log(rank), the rank counting what lies above ``source.rounding``; ``hill_alpha`` and ``hill_alpha_half``: Hill
        exponents of s^2 from the top 20 and the top half, 1 where these reach down to ``source.rounding``;
        ``spike_mass`` = share of sum s^2 above the threshold; ``s1_over_sigma_plus``; ``mean_outlier_ratio`` = mean of
        s / sigma_plus over spikes. Without a fit, those that go by its edge are left out.
    """
    p = min(source.shape)
    mean_square = source.measure.moment(2)
    energy = source.fro_norm**2
    s1 = float(source.ritz[0]) if len(source.ritz) else 0.0
    if energy <= 0 or s1 <= 0:
        return {name: value for name, value in _OF_ZERO.items() if fit is not None or name not in _BY_EDGE}
    share = source.measure.nodes**2 / mean_square
    # Mass w at a node stands for p w values of s^2 / sum s^2 = share / p each. That may underflow where share does not.
    positive = share / p > 0
    entropy = -float(source.measure.weights[positive] @ (share[positive] * np.log(share[positive] / p)))
    rank = p * float(source.measure.weights[source.measure.nodes > source.rounding].sum())
    found = {
        "spectral_norm": s1,
        "stable_rank": energy / s1**2,
        "entropy_rank": math.exp(entropy),
        "nuclear_rank": p * source.measure.moment(1) ** 2 / mean_square,
        "entropy": entropy / math.log(rank) if rank > 1 else 0.0,
        "hill_alpha": hill_alpha(source, min(HILL_TOP, p - 1)),
        "hill_alpha_half": hill_alpha(source, p // 2),
    }
    if fit is None:
        return found
    spikes = source.ritz[source.ritz > fit.threshold]
    return found | {
        "spike_mass": _energy_above(source, fit.threshold) / energy,
        "s1_over_sigma_plus": s1 / fit.sigma_plus if fit.sigma_plus > 0 else math.inf,
        "mean_outlier_ratio": float(spikes.mean() / fit.sigma_plus) if len(spikes) and fit.sigma_plus > 0 else 0.0,
    }


def hill_alpha(source: SpectrumLike, k: int) -> float:
    """Hill's exponent of the k largest ``s^2``: ``1 + 1 / mean(log(s_i^2 / s_{k+1}^2))``.

    Values that have not converged one by one come from the distribution function instead: an unconverged Ritz value
    says little about its rank. 99 when k < 2, as in the code of arXiv 2606.02608.
    """
    if k < 2:
        return 99.0
    leading = _leading(source, k + 1)
    if leading[-1] <= source.rounding:
        return 1.0
    leading = leading**2
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
