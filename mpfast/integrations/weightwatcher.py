"""The table of WeightWatcher's ``analyze``, made from an `mpfast.Analysis`; WeightWatcher itself is not needed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mpfast.support import package_missing

if TYPE_CHECKING:
    from mpfast.models import Analysis, LayerReport


__all__ = ["DIFFERENCES", "details"]

#: Columns that mean something else here, and what. The others agree to rounding.
DIFFERENCES = {
    "alpha": "Hill's estimate from the 20 largest eigenvalues; WeightWatcher fits a power law above an xmin that it "
    "searches for, so its value depends on the whole tail",
    "alpha_weighted": "with the alpha above",
    "num_spikes": "values above the Tracy-Widom corrected edge; WeightWatcher counts those above the edge of a fit "
    "whose variance it finds by minimising a Kolmogorov distance",
    "sigma_mp": "standard deviation of one noise entry of W; WeightWatcher's is that of W times W_scale",
    "bulk_max": "square of the fitted edge, on the scale of spectral_norm",
    "bulk_min": "square of the lower edge, on the scale of spectral_norm",
    "mp_softrank": "bulk_max over spectral_norm, with the bulk_max above",
    "layer_type": "the kinds of mpfast.checkpoints.Role; WeightWatcher says dense, conv2d or embedding",
    "N": "the longer side of the matrix. A convolution is one matrix (out, in * kh * kw); WeightWatcher analyses one "
    "matrix per kernel position, so its rows do not correspond",
    "layer_id": "number of the row; WeightWatcher numbers the modules, those without weights, too",
    "warning": "what the Marchenko-Pastur fit has to say; WeightWatcher judges alpha",
}


def details(analysis: Analysis) -> Any:
    """Return a pandas.DataFrame with WeightWatcher's columns, one row per layer.

    Columns: layer_id, name, longname, layer_type, M, N, Q, num_evals, norm, log_norm, spectral_norm,
    log_spectral_norm, sv_max, stable_rank, entropy, alpha, alpha_weighted, num_spikes, sigma_mp, bulk_min, bulk_max,
    mp_softrank, warning. `DIFFERENCES` says where the numbers differ from WeightWatcher's. Its other
    columns (of the power-law fit, of ranks and scales) are left out.

    Raises
    ------
    ImportError
        pandas is missing.
    """
    try:
        import pandas as pd
    except ImportError:
        raise package_missing("details()", "pandas", extra="pandas") from None
    return pd.DataFrame([_row(number, layer) for number, layer in enumerate(analysis)])


def _row(number: int, layer: LayerReport) -> dict[str, Any]:
    p, q = min(layer.shape), max(layer.shape)
    sigma = math.sqrt(layer.variance)
    # WeightWatcher's norms are those of the eigenvalues: squares of ours.
    norm, spectral_norm, bulk_max = layer.fro_norm**2, layer.metrics["spectral_norm"] ** 2, layer.sigma_plus**2
    log_spectral_norm = _log10(spectral_norm)
    return {
        "layer_id": number,
        "name": layer.name.removesuffix(".weight").rpartition(".")[2],
        "longname": layer.name.removesuffix(".weight"),
        "layer_type": layer.kind,
        "M": p,
        "N": q,
        "Q": q / p,
        "num_evals": p,
        "norm": norm,
        "log_norm": _log10(norm),
        "spectral_norm": spectral_norm,
        "log_spectral_norm": log_spectral_norm,
        "sv_max": layer.metrics["spectral_norm"],
        "stable_rank": layer.stable_rank,
        "entropy": layer.metrics["entropy"],
        "alpha": layer.hill_alpha,
        "alpha_weighted": layer.hill_alpha * log_spectral_norm,
        "num_spikes": layer.spikes,
        "sigma_mp": sigma,
        "bulk_min": (sigma * (math.sqrt(q) - math.sqrt(p))) ** 2,
        "bulk_max": bulk_max,
        "mp_softrank": bulk_max / spectral_norm if spectral_norm > 0 else math.nan,
        "warning": "; ".join(layer.warnings),
    }


def _log10(value: float) -> float:
    """Logarithm to base 10; NaN for the norms of the zero matrix."""
    return math.log10(value) if value > 0 else math.nan
