"""Matrices refitted to fewer inputs: which neurons or heads stay, and what becomes of the weights that read them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import reconstruct
from mpfast.arrays import in_storage, widened
from mpfast.checkpoints import Checkpoint, read_layer, stored
from mpfast.models.budget_row import along_inputs, from_inputs
from mpfast.models.joints import Joint, Joints
from mpfast.models.layer_moments import LayerMoments
from mpfast.models.refitting import damping_for
from mpfast.support import argument_called

__all__ = ["NarrowFits", "NarrowedLayer", "NarrowedReader"]


@dataclass(frozen=True)
class NarrowedLayer:
    """A matrix that reads fewer units than it did.

    Attributes
    ----------
    name : str
        Its tensor.
    kind : {"neurons", "heads"}
        What it reads; heads are groups, those of queries with the one of keys and values that serves them.
    units : int
        How many it has read.
    kept : tuple of int
        Which of them stay, from 0.
    masked_error, error : float
        ``tr (W - V) C (W - V)^T / tr W C W^T``, the mean squared change of its outputs, for V the columns that stay as
        they were, and as they were written.
    heldout_error : float or None
        The same on the last part of the inputs, where all was chosen and fitted on the others; None where the inputs
        were not kept apart in parts.
    """

    name: str
    kind: str
    units: int
    kept: tuple[int, ...]
    masked_error: float
    error: float
    heldout_error: float | None


@dataclass(frozen=True, eq=False)
class NarrowedReader:
    """A matrix with fewer inputs.

    Attributes
    ----------
    layer : NarrowedLayer
    weights : array
        In the order and the type in which it is stored; bits of types that NumPy lacks.
    """

    layer: NarrowedLayer
    weights: NDArray[Any]


@dataclass(frozen=True)
class NarrowFits:
    """Chooses what stays, and fits.

    Attributes
    ----------
    checkpoint
        Has the weights.
    moments
        Of the inputs of every matrix that reads, one for each.
    damping
        As in `damping_for`.
    threads
        Number of threads.
    """

    checkpoint: Checkpoint
    moments: LayerMoments
    damping: float | None
    threads: int

    def fitted(self, joints: Joints, joint: Joint) -> NarrowedReader:
        """Fit the next matrix."""
        layer = joint.reader
        tensor = stored(read_layer(self.checkpoint, layer), layer.name)
        rows = along_inputs(tensor, layer.input_axes)
        weights = widened(rows) if layer.dtype == "bfloat16" else rows
        (part,) = self.moments.parts(layer)
        whole, partial_moment, kept_back = self.moments.factors(layer, part, partial(damping_for, "", 0, self.damping))
        options = {"group": joints.per_reader, "threads": self.threads}
        gone = joints.units - joints.kept
        with argument_called(f"the moment of {layer.name}", within="C"), argument_called(layer.name, within="W"):
            fit = reconstruct.drop_inputs(weights, whole, gone, **options)
            heldout = None
            if partial_moment is not None:
                heldout = reconstruct.drop_inputs(weights, partial_moment, gone, **options).heldout(kept_back)
        columns = fit.mask[0]
        left = in_storage(np.ascontiguousarray(np.asarray(fit.weights)[:, columns]), layer.dtype)
        (shape,) = (joint.shapes(joints.units, joints.kept)[name] for name in [layer.file_name])
        kept = np.flatnonzero(columns[:: joints.per_reader])
        row = NarrowedLayer(
            layer.name,
            joints.kind,
            joints.units,
            tuple(map(int, kept)),
            fit.masked_error,
            fit.error,
            heldout,
        )
        self.checkpoint.release(layer.file_name)
        return NarrowedReader(row, from_inputs(left, shape, layer.input_axes))
