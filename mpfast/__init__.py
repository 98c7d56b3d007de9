"""Marchenko-Pastur edges of neural-network weight matrices, in seconds and with error bars."""

import mpfast._native  # isort: skip  # loads the core, before whatever uses it

from typing import TYPE_CHECKING, Any

from mpfast import masks
from mpfast.operators import gram_product
from mpfast.spectra import (
    SVD,
    EdgeFit,
    MarchenkoPastur,
    Spectrum,
    TracyWidom,
    lowrank,
    optimal_threshold,
    shrink,
    spectrum,
    svd,
)
from mpfast.support import CheckpointError, ConvergenceWarning

if TYPE_CHECKING:
    from mpfast import reconstruct
    from mpfast.models import (
        Analysis,
        Budget,
        CompressResult,
        Inventory,
        LayerReport,
        ModelDiff,
        NarrowResult,
        PruneResult,
        QuantizeResult,
        ResizeResult,
        Verification,
        analyze,
        compress,
        diff,
        inspect,
        narrow,
        prune,
        quantize,
        resize,
        verify,
    )

    __version__: str

__all__ = [
    "SVD",
    "Analysis",
    "Budget",
    "CheckpointError",
    "CompressResult",
    "ConvergenceWarning",
    "EdgeFit",
    "Inventory",
    "LayerReport",
    "MarchenkoPastur",
    "ModelDiff",
    "NarrowResult",
    "PruneResult",
    "QuantizeResult",
    "ResizeResult",
    "Spectrum",
    "TracyWidom",
    "Verification",
    "analyze",
    "compress",
    "diff",
    "gram_product",
    "inspect",
    "lowrank",
    "masks",
    "narrow",
    "optimal_threshold",
    "prune",
    "quantize",
    "reconstruct",
    "resize",
    "shrink",
    "spectrum",
    "svd",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "reconstruct":
        # Needed by few, and as large as the masks.
        import importlib

        return importlib.import_module("mpfast.reconstruct")
    # Whole models need the larger part of the standard library: loaded at first use, half of the time of an import.
    if name in __all__:
        import mpfast.models

        return getattr(mpfast.models, name)
    if name == "__version__":
        from importlib.metadata import version

        return version("mpfast")
    raise AttributeError(f"module 'mpfast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
