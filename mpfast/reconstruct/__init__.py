"""Weights refitted to what a layer sees: pruned, rounded or factored so that its outputs change least.

All of it needs the second moment ``C`` of the layer's inputs, the mean of ``x x^T``, uncentred, of shape (in, in). A
layer computes ``W x``; when W becomes V, the mean squared change of its outputs is ``tr (W - V) C (W - V)^T``, and that
over ``tr W C W^T`` is what is called an error here.

PyTorch and CuPy weights on a GPU stay there, where the build has the CUDA backend, in `prune` with ``method="obs"``,
`refit` and `quantize`, with patterns of groups of up to 16: columns, choices, rounding and the refit are computed on
the device. What the `Factor` gives is made on the host and copied to each device once; in a process with PyTorch,
cuSOLVER makes the triangular factor there. Errors are computed on the host. So is all of the other functions, methods
and patterns: for these, arrays are copied there, and results back.

Host and device round alike and differ in the order of sums in products, so that weights agree to single precision.
Where two choices are nearly equal (which weight goes, which of two grid points is nearer) they may make another one,
and what comes after it follows. On a device, the bits are the same from run to run.
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
