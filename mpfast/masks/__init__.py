"""Pruning masks: which weights stay.

A mask is a boolean array of the shape of its matrix, True where the weight is kept, in the caller's framework. The
number of pruned entries is exact: ``floor(sparsity * N)``. Entries that are already zero go first; ties are broken by
layer order, then by flat index: of two equal entries the one with the lower index goes first. No array of scores is
ever formed.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mpfast.masks.allocation import allocate, gaussian_shares, linear_map, mapped_shares, row_counts, spread
from mpfast.masks.by_magnitude import magnitude
from mpfast.masks.by_noise_floor import noise_floor
from mpfast.masks.by_row import prune_rows
from mpfast.masks.by_spectrum import spectral_budget, spectral_signals
from mpfast.masks.groups import GroupLayout, n_m
from mpfast.masks.regimes import BERLYAND2026, Regime, default_layer_type, layer_weights, regime_for
from mpfast.masks.restoration import input_norm_saliency, restoration_gain, restore
from mpfast.masks.score_counts import ScoreCounts, cut_shares

if TYPE_CHECKING:
    from mpfast.masks.certificates import BOUND, ESTIMATE, EXACT, PROXY, Labelled, LayerCertificate, RemovedWeights
    from mpfast.masks.loss_bounds import margin_safe, worst_cross_entropy
    from mpfast.masks.projection import Projection, output_error, permute_inputs, permute_outputs, project

__all__ = [
    "BERLYAND2026",
    "BOUND",
    "ESTIMATE",
    "EXACT",
    "PROXY",
    "GroupLayout",
    "Labelled",
    "LayerCertificate",
    "Projection",
    "Regime",
    "RemovedWeights",
    "ScoreCounts",
    "allocate",
    "cut_shares",
    "default_layer_type",
    "gaussian_shares",
    "input_norm_saliency",
    "layer_weights",
    "linear_map",
    "magnitude",
    "mapped_shares",
    "margin_safe",
    "n_m",
    "noise_floor",
    "output_error",
    "permute_inputs",
    "permute_outputs",
    "project",
    "prune_rows",
    "regime_for",
    "restoration_gain",
    "restore",
    "row_counts",
    "spectral_budget",
    "spectral_signals",
    "spread",
    "worst_cross_entropy",
]


def __getattr__(name: str) -> Any:
    # Most programs use none of these, which take as long to load as all other methods together.
    if name in __all__:
        for file in ("projection", "certificates", "loss_bounds"):
            module = importlib.import_module(f"{__name__}.{file}")
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
