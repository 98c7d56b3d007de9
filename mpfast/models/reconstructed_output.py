"""What is written of a checkpoint whose tensors were reconstructed elsewhere: as `prune` writes it, for `verify`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.checkpoints import Checkpoint, Layer, roles_of
from mpfast.models.budget import Budget
from mpfast.models.extent import dense_tensors, model_entries
from mpfast.models.mask_plans import Refit
from mpfast.models.provenance import Provenance
from mpfast.models.pruned_output import MaskingPass, write_pruned
from mpfast.models.skipped import skipped_tensors
from mpfast.support import OutputDirectory

__all__ = ["NewTensor", "write_reconstructed"]


@dataclass(frozen=True)
class NewTensor:
    """A tensor as it is to be.

    Attributes
    ----------
    weights : array
        In its shape and type; bits of types that NumPy lacks.
    mask : array of bool or None
        True = kept; None: all are.
    masked_error, error, heldout_error : float or None
        As in `LayerBudget`.
    """

    weights: NDArray[Any]
    mask: NDArray[np.bool_] | None
    masked_error: float | None = None
    error: float | None = None
    heldout_error: float | None = None


def write_reconstructed(
    checkpoint: Checkpoint,
    place: OutputDirectory,
    inputs: Mapping[str, tuple[int, ...]],
    tensor: Callable[[str], NewTensor],
    *,
    method: str,
    sparsity: float,
    pattern: str | None,
    provenance: Provenance,
    documents: Mapping[str, str],
) -> tuple[Budget, tuple[str, ...]]:
    """Write the checkpoint with some tensors replaced, with masks and a budget, all or nothing.

    Parameters
    ----------
    checkpoint
        The source.
    place
        Where to write.
    inputs
        By name of the tensors that are replaced, their axes along the inputs.
    tensor
        Gives what comes in the place of one; they are asked for in the order of the checkpoint.
    method, sparsity, pattern, provenance
        As in `Budget`.
    documents
        Texts of other files that are written beside, by name.

    Returns
    -------
    budget : Budget
    left : tuple of str
        What lies beside the weights and was not copied, and why.
    """
    roles = roles_of(checkpoint)
    layers = [
        Layer(
            info.name,
            roles[info.name].kind,
            info.shape,
            (info.shape[0], info.size // info.shape[0]),
            info.dtype,
            info.name,
            input_axes=inputs[info.name],
        )
        for info in checkpoint.tensors
        if info.name in inputs
    ]
    reasons = {name: role.reason or "not reconstructed" for name, role in roles.items() if name not in inputs}
    stays = skipped_tensors(checkpoint, layers, reasons)
    budget = Budget(
        (),
        method,
        sparsity,
        pattern,
        checkpoint.source,
        dense=dense_tensors(stays),
        model_entries=model_entries(((layer.name, layer.tensor_shape, layer.dtype) for layer in layers), stays),
        provenance=provenance,
    )
    masking = MaskingPass(checkpoint, layers, _Replacing(tensor), {}, None, pattern is not None)
    return write_pruned(masking, place, budget, documents)


@dataclass
class _Replacing:
    """Gives out what comes in the place of tensors."""

    tensor: Callable[[str], NewTensor]

    def mask(self, layer: Layer, rows: NDArray[Any], keep: NDArray[np.bool_]) -> Refit:
        """Write the mask of the next tensor, and return its weights; see `MaskPlan`."""
        new = self.tensor(layer.name)
        keep[...] = True if new.mask is None else new.mask.reshape(keep.shape)
        written = np.ascontiguousarray(new.weights).reshape(rows.shape).view(rows.dtype)
        # A zero of either sign, where the mask is.
        return Refit(np.where(keep, written, np.zeros((), rows.dtype)), new.error, new.masked_error, new.heldout_error)
