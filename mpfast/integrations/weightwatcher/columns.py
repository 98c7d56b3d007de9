"""What WeightWatcher's columns are of the eigenvalues of a layer: squares of the singular values, pooled, ascending."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.integrations.weightwatcher.layers import WatchedLayer, WatchedModel
from mpfast.spectra import PowerLaw, Spectrum, power_law, spectrum
from mpfast.support import InvalidValueError, KeptProperty

__all__ = [
    "LayerSpectra",
    "constraint_columns",
    "norm_columns",
    "number_of_draws",
    "places_of",
    "power_law_columns",
    "random_columns",
    "spectra_of",
    "tail_of",
]

Array = NDArray[np.float64]

# WeightWatcher's constants: what it takes for zero in fits and in `weak_rank_loss`; what it warns of; how many
# eigenvalues are few to it, for the exponent and for a random baseline of one draw.
_ZERO, _WEAK = 1e-5, 1e-6
_OVER_TRAINED, _UNDER_TRAINED = 2.0, 6.0
_SMALL_TAIL, _LEAST_TAIL = 20, 8
_FEW, _DRAWS_OF_FEW = 100, 5


@dataclass(frozen=True)
class LayerSpectra:
    """The spectra of the matrices of a layer, as WeightWatcher scales them.

    Attributes
    ----------
    watched : WatchedLayer
        The layer.
    spectra : tuple of Spectrum
        Of every matrix, all singular values known.
    """

    watched: WatchedLayer
    spectra: tuple[Spectrum, ...]

    @KeptProperty
    def eigenvalues(self) -> Array:
        """Of all matrices together, ascending."""
        values = [one.values for one in self.spectra if one.values is not None]
        return np.sort(np.concatenate(values) ** 2)

    @property
    def edges(self) -> Array:
        """Squares of the lower and the upper edge, means over the matrices."""
        squares = [(one.edge.sigma_minus**2, one.edge.sigma_plus**2) for one in self.spectra]
        return np.asarray(np.mean(squares, axis=0), dtype=np.float64)

    @property
    def spikes(self) -> int:
        """Number of singular values above the Tracy-Widom threshold of their matrix."""
        return sum(one.edge.spikes for one in self.spectra)

    def noise_columns(self, prefix: str = "") -> dict[str, Any]:
        """Return the columns of a Marchenko-Pastur fit."""
        eigenvalues = self.eigenvalues
        scale = math.sqrt(len(eigenvalues) / eigenvalues.sum()) if eigenvalues[-1] > 0 else math.nan
        low, high = self.edges
        variance = float(np.mean([one.edge.variance for one in self.spectra]))
        return {
            f"{prefix}num_spikes": self.spikes,
            f"{prefix}sigma_mp": math.sqrt(variance * self.watched.N) * scale,
            f"{prefix}mp_softrank": _ratio(high, eigenvalues[-1]),
            f"{prefix}W_scale": scale,
            f"{prefix}bulk_max": high,
            f"{prefix}bulk_min": low,
        }


def spectra_of(
    model: WatchedModel, watched: WatchedLayer, threads: int | None = None, rng: np.random.Generator | None = None
) -> LayerSpectra:
    """Measure the matrices of a layer; with a generator, with their entries in random places."""
    found = []
    for matrix in model.matrices(watched):
        entries = matrix if watched.scale == 1 else matrix * watched.scale
        if rng is not None:
            entries = rng.permutation(entries.reshape(-1)).reshape(entries.shape)
        found.append(spectrum(entries, method="exact", threads=threads))
    return LayerSpectra(watched, tuple(found))


def norm_columns(found: LayerSpectra) -> dict[str, Any]:
    """Return what the eigenvalues alone say."""
    eigenvalues = found.eigenvalues
    energy, largest = float(eigenvalues.sum()), float(eigenvalues[-1])
    singular = [one.values for one in found.spectra if one.values is not None]
    lost = sum(int(np.count_nonzero(one.values <= one.rounding)) for one in found.spectra if one.values is not None)
    rank = len(eigenvalues) - lost
    shares = eigenvalues[eigenvalues > 0] / energy if energy > 0 else eigenvalues[:0]
    entropy = -float(shares @ np.log(shares)) / math.log(rank) if rank > 1 else 0.0
    return {
        "has_esd": True,
        "num_evals": len(eigenvalues),
        "sv_max": math.sqrt(largest),
        "sv_min": max(float(values[-1]) for values in singular),
        "rank_loss": lost,
        "weak_rank_loss": int(np.count_nonzero(eigenvalues < _WEAK)),
        "lambda_max": largest,
        "norm": energy,
        "log_norm": _log10(energy),
        "spectral_norm": largest,
        "log_spectral_norm": _log10(largest),
        "stable_rank": _ratio(energy, largest),
        "matrix_rank": rank,
        "entropy": entropy,
    }


def tail_of(eigenvalues: Array) -> PowerLaw | None:
    """Fit WeightWatcher's power law; None where there is nothing to fit."""
    fitted = eigenvalues[eigenvalues > _ZERO]
    small = len(fitted) < _SMALL_TAIL
    try:
        return power_law(fitted, unbiased=small, least=_LEAST_TAIL if small else 2)
    except InvalidValueError:
        return None


def power_law_columns(eigenvalues: Array) -> dict[str, Any]:
    """Return the columns of the power law and the warning."""
    fit = tail_of(eigenvalues)
    if fit is None:
        numbers = dict.fromkeys(("alpha", "xmin", "xmax", "D", "sigma", "alpha_weighted", "log_alpha_norm"), math.nan)
        return {**numbers, "num_pl_spikes": 0, "status": "failed", "warning": ""}
    logs = np.log10(eigenvalues[eigenvalues > 0])
    # Of powers of ten that may leave the range of float64.
    powers = fit.alpha * logs
    log_alpha_norm = float(powers[-1] + np.log10(np.sum(10.0 ** (powers - powers[-1]))))
    over, under = fit.alpha < _OVER_TRAINED, fit.alpha > _UNDER_TRAINED
    return {
        "alpha": fit.alpha,
        "xmin": fit.xmin,
        "xmax": fit.xmax,
        "D": fit.D,
        "sigma": fit.sigma,
        "num_pl_spikes": fit.tail,
        "status": "success",
        "warning": "over-trained" if over else "under-trained" if under else "",
        "alpha_weighted": fit.alpha * float(logs[-1]),
        "log_alpha_norm": log_alpha_norm,
    }


def random_columns(found: LayerSpectra, draws: Sequence[LayerSpectra]) -> dict[str, Any]:
    """Return what the matrices compare with when their entries are in random places."""
    eigenvalues, randomised = found.eigenvalues, draws[0].eigenvalues
    baseline = draws[0].noise_columns("rand_")
    return {
        "max_rand_eval": max(float(draw.eigenvalues[-1]) for draw in draws),
        "rand_distance": _jensen_shannon(eigenvalues, randomised),
        "ww_softrank": _ratio(float(randomised[-1]), float(eigenvalues[-1])),
        "ww_maxdist": float(eigenvalues[-1] - randomised[-1]),
        "num_traps": baseline["rand_num_spikes"],
        **baseline,
    }


def places_of(watched: WatchedLayer, seed: int) -> np.random.Generator:
    """Return what draws random places for a layer, whichever others there are."""
    return np.random.default_rng((seed, zlib.crc32(watched.longname.encode())))


def number_of_draws(watched: WatchedLayer) -> int:
    """How many random baselines WeightWatcher draws."""
    return _DRAWS_OF_FEW if watched.M * watched.rf < _FEW else 1


def constraint_columns(eigenvalues: Array, tail: int) -> dict[str, Any]:
    """Return where the determinant of the largest eigenvalues, scaled to a mean of 1, falls below 1."""
    scale = len(eigenvalues) / float(eigenvalues.sum()) if eigenvalues[-1] > 0 else math.nan
    with np.errstate(divide="ignore"):
        logs = np.log(eigenvalues * scale)
    below = np.flatnonzero(np.cumsum(logs[::-1]) < 0)
    count = int(below[0]) + 1 if len(below) and below[0] < len(eigenvalues) - 1 else len(eigenvalues)
    first = float(eigenvalues[-count]) if count < len(eigenvalues) else float(eigenvalues[min(1, len(eigenvalues) - 1)])
    return {
        "detX_num": count,
        "num_ERG_spikes": count,
        "ERG_gap": count - tail,
        "detX_val": first,
        "detX_val_unrescaled": first * scale,
    }


def _jensen_shannon(one: Array, other: Array) -> float:
    """Root of the Jensen-Shannon divergence of two lists of eigenvalues, each taken for a distribution over ranks."""
    p, q = one / one.sum(), other / other.sum()
    middle = (one + other) / (one + other).sum()

    def divergence(shares: Array) -> float:
        kept = shares > 0
        return float(shares[kept] @ np.log(shares[kept] / middle[kept]))

    return math.sqrt(max(0.0, (divergence(p) + divergence(q)) / 2))


def _ratio(over: float, under: float) -> float:
    return float(over / under) if under > 0 else math.nan


def _log10(value: float) -> float:
    """Logarithm to base 10; NaN for the norms of the zero matrix."""
    return math.log10(value) if value > 0 else math.nan
