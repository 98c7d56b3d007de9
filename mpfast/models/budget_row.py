"""One row of a budget."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields

from mpfast.support import LARGEST_GROUP, Record

__all__ = ["LayerBudget", "is_stack", "module_of", "parsed_pattern", "row_from"]


@dataclass(frozen=True)
class LayerBudget:
    """One row of a budget.

    Attributes
    ----------
    name : str
        Tensor in the checkpoint.
    kind : str
        "linear", "conv" or "embedding".
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

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def module(self) -> str:
        """Name of the module that owns the tensor."""
        return module_of(self.name)


def module_of(name: str) -> str:
    """Return the name of the module that owns a tensor."""
    return name.removesuffix(".weight").removesuffix(".kernel")


def is_stack(row: LayerBudget) -> bool:
    """Whether a row is a stack of matrices, as of fused experts, and no module's weight."""
    return row.kind == "linear" and len(row.shape) == 3 and row.shape[0] > 1


def parsed_pattern(text: str) -> tuple[int, int] | None:
    """Return n and m of a pattern ``n:m`` that keeps n of every m entries; None unless ``1 <= n <= m <= 64``."""
    found = re.fullmatch("([0-9]{1,2}):([0-9]{1,2})", text) if isinstance(text, str) else None
    if found is None or not 1 <= int(found[1]) <= int(found[2]) <= LARGEST_GROUP:
        return None
    return int(found[1]), int(found[2])


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
    )
