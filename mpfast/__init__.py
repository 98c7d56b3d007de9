"""Marchenko-Pastur edges of neural-network weight matrices, in seconds and with error bars."""

from importlib.metadata import version as _version

from mpfast import lowrank, masks
from mpfast.analysis import Analysis, LayerReport, analyze
from mpfast.edge import EdgeFit
from mpfast.errors import CheckpointError, ConvergenceWarning
from mpfast.gram import gram_product
from mpfast.laws import MarchenkoPastur, TracyWidom
from mpfast.shrinkage import optimal_threshold, shrink
from mpfast.spectrum import Spectrum, spectrum
from mpfast.svd import SVD, svd

__version__ = _version("mpfast")

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
