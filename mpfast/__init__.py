"""Marchenko-Pastur edges of neural-network weight matrices, in seconds and with error bars."""

from typing import TYPE_CHECKING, Any

from mpfast import lowrank, masks
from mpfast.edge import EdgeFit
from mpfast.errors import CheckpointError, ConvergenceWarning
from mpfast.gram import gram_product
from mpfast.laws import MarchenkoPastur, TracyWidom
from mpfast.shrinkage import optimal_threshold, shrink
from mpfast.spectrum import Spectrum, spectrum
from mpfast.svd import SVD, svd

if TYPE_CHECKING:
    from mpfast.analysis import Analysis, LayerReport, analyze

    __version__: str

__all__ = [
    "SVD",
    "Analysis",
    "CheckpointError",
    "ConvergenceWarning",
    "EdgeFit",
    "LayerReport",
    "MarchenkoPastur",
    "Spectrum",
    "TracyWidom",
    "analyze",
    "gram_product",
    "lowrank",
    "masks",
    "optimal_threshold",
    "shrink",
    "spectrum",
    "svd",
]


def __getattr__(name: str) -> Any:
    # What needs the larger part of the standard library is loaded at first use: half of the time of an import.
    if name in ("Analysis", "LayerReport", "analyze"):
        from mpfast import analysis

        return getattr(analysis, name)
    if name == "__version__":
        from importlib.metadata import version

        return version("mpfast")
    raise AttributeError(f"module 'mpfast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
