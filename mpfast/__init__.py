"""Marchenko-Pastur edges of neural-network weight matrices, in seconds and with error bars."""

import importlib
from typing import TYPE_CHECKING, Any

from mpfast import native  # noqa: F401  # before whatever uses the core

# isort: split
from mpfast import lowrank, masks
from mpfast.edge import EdgeFit
from mpfast.errors import CheckpointError, ConvergenceWarning
from mpfast.gram import gram_product
from mpfast.laws import MarchenkoPastur, TracyWidom
from mpfast.shrinkage import optimal_threshold, shrink
from mpfast.spectrum import Spectrum, spectrum
from mpfast.svd import SVD, svd

if TYPE_CHECKING:
    from mpfast import certificates as certificates
    from mpfast import projection as projection
    from mpfast import singular_vectors as singular_vectors
    from mpfast import synthetic as synthetic
    from mpfast.analysis import Analysis, LayerReport, analyze
    from mpfast.budget import Budget
    from mpfast.compression import CompressResult, compress
    from mpfast.pruning import PruneResult, prune
    from mpfast.verification import Verification, verify

    __version__: str

__all__ = [
    "SVD",
    "Analysis",
    "Budget",
    "CheckpointError",
    "CompressResult",
    "ConvergenceWarning",
    "EdgeFit",
    "LayerReport",
    "MarchenkoPastur",
    "PruneResult",
    "Spectrum",
    "TracyWidom",
    "Verification",
    "analyze",
    "compress",
    "gram_product",
    "lowrank",
    "masks",
    "optimal_threshold",
    "prune",
    "shrink",
    "spectrum",
    "svd",
    "verify",
]

# What needs the larger part of the standard library is loaded at first use: half of the time of an import.
_LATER = {
    "Analysis": "analysis",
    "LayerReport": "analysis",
    "analyze": "analysis",
    "Budget": "budget",
    "CompressResult": "compression",
    "compress": "compression",
    "PruneResult": "pruning",
    "prune": "pruning",
    "Verification": "verification",
    "verify": "verification",
}


_MODULES_LATER = ("certificates", "projection", "singular_vectors", "synthetic")


def __getattr__(name: str) -> Any:
    if name in _MODULES_LATER:
        return importlib.import_module(f"mpfast.{name}")
    if name in _LATER:
        return getattr(importlib.import_module(f"mpfast.{_LATER[name]}"), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("mpfast")
    raise AttributeError(f"module 'mpfast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES_LATER, "__version__"})
