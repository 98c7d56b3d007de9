"""One row of a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpfast.support import InvalidTypeError, Record, percent

if TYPE_CHECKING:
    from mpfast.checkpoints import Layer
    from mpfast.models.layer_report import LayerReport

__all__ = ["LayerBudget", "along_inputs", "check_budget", "from_inputs", "is_stack", "module_of", "row_from", "row_of"]


@dataclass(frozen=True, repr=False)
class LayerBudget:
    """One row of a budget.

    Attributes
    ----------
    name : str
        Tensor, as who uses the model calls it.
    kind : str
        What it is, see `mpfast.checkpoints.Role`.
    shape : tuple of int
        Shape as stored.
    dtype : str
        Element type as stored.
    pruned : int
        Entries to prune, those that are zero already among them.
    sparsity : float
        ``pruned`` over the number of entries.
    sigma_plus, sigma_plus_error : float or None
        Marchenko-Pastur edge and its standard error, singular-value scale; None where no spectrum was taken.
    rank : int or None
        Number of singular values above the noise.
    content : str or None
        Hash of the dense tensor's bytes, ``"sha256:<hex>"``.
    stored : str or None
        Name of the tensor in the files, where it is called otherwise in the model.
    input_axes : tuple of int or None
        Axes of the tensor along which the groups of a pattern run, slowest first; None: along its rows.
    updated : bool
        Whether the weights that are kept were refitted to the second moment C of the layer's inputs.
    written : str or None
        Hash of the bytes that were written for an updated tensor.
    masked_error, error : float or None
        Of an updated tensor: ``tr (W - V) C (W - V)^T / tr W C W^T``, the mean squared change of the layer's outputs,
        for V the weights that are kept as they were, and as they were written.
    heldout_error : float or None
        The same on the last part of the inputs, for weights that were fitted in the same way to the others; None where
        the inputs were not kept apart in parts.
    reason : str or None
        Why the kept weights of a tensor were not refitted, where others were.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    pruned: int
    sparsity: float
    sigma_plus: float | None = None
    sigma_plus_error: float | None = None
    rank: int | None = None
    content: str | None = None
    stored: str | None = None
    input_axes: tuple[int, ...] | None = None
    updated: bool = False
    written: str | None = None
    masked_error: float | None = None
    error: float | None = None
    heldout_error: float | None = None
    reason: str | None = None

    def __repr__(self) -> str:
        size = "x".join(map(str, self.shape))
        return f"LayerBudget({self.name!r}: {size}, {self.pruned} of {self.size} entries, {percent(self.sparsity, 2)})"

    @property
    def file_name(self) -> str:
        """Name of the tensor in the files."""
        return self.stored or self.name

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def module(self) -> str:
        """Name of the module that owns the tensor."""
        return module_of(self.name)


def check_budget(budget: Any) -> None:
    """Raise InvalidTypeError unless the rows of `budget` are those of a budget."""
    if not isinstance(budget, Sequence) or not all(isinstance(row, LayerBudget) for row in budget):
        advice = "Analysis.budget makes one" if hasattr(budget, "budget") else ""
        raise InvalidTypeError("budget", f"must be a Budget, not {type(budget).__name__}", advice)


def module_of(name: str) -> str:
    """Return the name of the module that owns a tensor."""
    return name.removesuffix(".weight").removesuffix(".kernel")


def is_stack(row: LayerBudget) -> bool:
    """Whether a row is a stack of matrices, as of fused experts, and no module's weight."""
    return row.kind in ("experts", "linear") and len(row.shape) == 3 and row.shape[0] > 1


def row_of(layer: Layer | LayerReport, pruned: int, report: LayerReport | None, **written: Any) -> LayerBudget:
    """The row of a layer of which `pruned` entries go, with what its spectrum says, and what was `written` of it."""
    return LayerBudget(
        layer.name,
        layer.kind,
        layer.tensor_shape,
        layer.dtype,
        pruned=pruned,
        sparsity=pruned / math.prod(layer.tensor_shape),
        sigma_plus=None if report is None else report.sigma_plus,
        sigma_plus_error=None if report is None else report.sigma_plus_error,
        rank=None if report is None else report.spikes,
        **written,
    )


def row_from(record: Record) -> LayerBudget:
    """Read one row of a budget's JSON; ValueError names the field that is wrong."""
    record.allow({column.name for column in fields(LayerBudget)})
    shape = record.shape("shape", least=1)
    if 0 in shape:
        raise record.refuse("shape", "that of a tensor with entries")
    pruned = record.integer("pruned")
    if pruned > math.prod(shape):
        raise record.refuse("pruned", f"at most the {math.prod(shape)} entries of the shape")
    return LayerBudget(
        record.text("name"),
        record.text("kind"),
        shape,
        record.text("dtype"),
        pruned,
        record.number("sparsity", 0, 1),
        record.optional_number("sigma_plus", 0),
        record.optional_number("sigma_plus_error", 0),
        record.integer("rank") if record.has("rank") else None,
        record.optional_text("content"),
        record.optional_text("stored"),
        _axes(record, len(shape)),
        record.flag("updated") if record.has("updated") else False,
        record.optional_text("written"),
        record.optional_number("masked_error", 0),
        record.optional_number("error", 0),
        record.optional_number("heldout_error", 0),
        record.optional_text("reason"),
    )


def _axes(record: Record, dimensions: int) -> tuple[int, ...] | None:
    if not record.has("input_axes"):
        return None
    axes = record.shape("input_axes", least=1)
    if len(set(axes)) != len(axes) or max(axes) >= dimensions:
        raise record.refuse("input_axes", "different axes of the shape")
    return axes


def along_inputs(array: NDArray[Any], axes: Sequence[int]) -> NDArray[Any]:
    """Return a tensor as rows that run along its inputs, contiguous: a view where they do that already."""
    if not axes:
        axes = tuple(range(1, array.ndim))
    others = [axis for axis in range(array.ndim) if axis not in axes]
    length = math.prod(array.shape[axis] for axis in axes)
    return np.ascontiguousarray(array.transpose([*others, *axes])).reshape(-1, length)


def from_inputs(rows: NDArray[Any], shape: tuple[int, ...], axes: Sequence[int]) -> NDArray[Any]:
    """Return what `along_inputs` has turned in the stored order again."""
    others = [axis for axis in range(len(shape)) if axis not in axes]
    order = [*others, *axes]
    turned = rows.reshape([shape[axis] for axis in order])
    return np.ascontiguousarray(turned.transpose(np.argsort(order)))
