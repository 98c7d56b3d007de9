"""Weights refitted to what a layer sees: pruned, rounded or factored so that its outputs change least.

All of it needs the second moment ``C`` of the layer's inputs, the mean of ``x x^T``, uncentred, of shape (in, in). A
layer computes ``W x``; when W becomes V, the mean squared change of its outputs is ``tr (W - V) C (W - V)^T``, and that
over ``tr W C W^T`` is what is called an error here.

Everything is computed on the host; PyTorch and CuPy arrays on a GPU are copied there, and results back.
"""

from mpfast.reconstruct.columns import prune
from mpfast.reconstruct.energies import output_energies
from mpfast.reconstruct.factor import Factor
from mpfast.reconstruct.fit import Fit, Grid
from mpfast.reconstruct.gradients import row_weights
from mpfast.reconstruct.least_squares import refit
from mpfast.reconstruct.low_rank import lowrank, lowrank_pooled
from mpfast.reconstruct.quantization import quantize
from mpfast.reconstruct.structured import drop_inputs

__all__ = [
    "Factor",
    "Fit",
    "Grid",
    "drop_inputs",
    "lowrank",
    "lowrank_pooled",
    "output_energies",
    "prune",
    "quantize",
    "refit",
    "row_weights",
]
