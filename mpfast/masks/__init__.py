"""Pruning masks: which weights stay.

A mask is a boolean array of the shape of its matrix, True where the weight is kept, in the caller's framework. The
number of pruned entries is exact: ``floor(sparsity * N)``. Entries that are already zero go first; ties are broken by
layer order, then by flat index: of two equal entries the one with the lower index goes first. No array of scores is
ever formed.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mpfast.masks.allocation import allocate, gaussian_shares, linear_map
from mpfast.masks.by_magnitude import magnitude
from mpfast.masks.by_noise_floor import noise_floor
from mpfast.masks.by_spectrum import spectral_budget, spectral_signals
from mpfast.masks.groups import GroupLayout, n_m
from mpfast.masks.regimes import BERLYAND2026, Regime, default_layer_type, layer_weights, regime_for
from mpfast.masks.restoration import input_norm_saliency, restoration_gain, restore

if TYPE_CHECKING:
    from mpfast.masks.certificates import (
        BOUND,
        ESTIMATE,
        EXACT,
        PROXY,
        Labelled,
        LayerCertificate,
        RemovedWeights,
        margin_safe,
        worst_cross_entropy,
    )
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
    "allocate",
    "default_layer_type",
    "gaussian_shares",
    "input_norm_saliency",
    "layer_weights",
    "linear_map",
    "magnitude",
    "margin_safe",
    "n_m",
    "noise_floor",
    "output_error",
    "permute_inputs",
    "permute_outputs",
    "project",
    "regime_for",
    "restoration_gain",
    "restore",
    "spectral_budget",
    "spectral_signals",
    "worst_cross_entropy",
]


def __getattr__(name: str) -> Any:
    # Most programs use neither, and they take as long to load as the other methods together.
    if name in __all__:
        for file in ("projection", "certificates"):
            module = importlib.import_module(f"{__name__}.{file}")
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
