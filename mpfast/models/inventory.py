"""`inspect`: what a checkpoint holds and what of it would be analysed, from its headers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from mpfast.checkpoints import (
    AdapterProducts,
    NameFilter,
    TensorInfo,
    Views,
    has_updates,
    open_checkpoint,
    roles_of,
    select_layers,
    unseen_quantisation,
)
from mpfast.models.layer_job import checked_views
from mpfast.models.layer_json import jsonable
from mpfast.models.provenance import Provenance, provenance_of
from mpfast.models.rows import Rows
from mpfast.support import front_door, warn_caller

__all__ = ["Inventory", "InventoryRow", "inspect"]

SCHEMA = "mpfast.inspect/1"


@dataclass(frozen=True)
class InventoryRow:
    """What is known of a tensor before a byte of it is read.

    Attributes
    ----------
    name : str
        In the checkpoint.
    shape : tuple of int
        As stored.
    dtype : str
        As stored; of a quantised weight as it is read.
    stored : str
        How a quantised weight is stored, ``"fp8 128x128"``; empty of any other tensor.
    entries : int
        Their number.
    role : str
        What the tensor is, see `mpfast.checkpoints.Role`: "linear", "conv", "embedding", "head", "experts", "vector",
        "companion" (of a quantised weight), "alias", "view", "mask" and so on; "unknown" where nothing tells.
    known_from : str
        What tells: "module class", "ONNX node", "config.json", "storage", "shape", "name" and so on.
    matrices : int
        As how many matrices it would be analysed.
    reason : str or None
        Why it would not be.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    stored: str
    entries: int
    role: str
    known_from: str
    matrices: int
    reason: str | None


@dataclass(frozen=True, repr=False)
class Inventory(Rows[InventoryRow]):
    """What `mpfast.inspect` found: an immutable sequence of `InventoryRow`, in the order of the checkpoint.

    Attributes
    ----------
    rows : tuple of InventoryRow
        All tensors.
    source : str
        The checkpoint.
    provenance : Provenance
        What made it.
    """

    rows: tuple[InventoryRow, ...]
    source: str
    provenance: Provenance = field(compare=False)

    def _rows(self) -> tuple[InventoryRow, ...]:
        return self.rows

    def _sources(self) -> tuple[str, ...]:
        return (self.source,)

    def _columns_shown(self) -> dict[str, Callable[[InventoryRow], str]]:
        return {
            "tensor": lambda row: row.name,
            "shape": lambda row: "x".join(map(str, row.shape)),
            "type": lambda row: row.dtype,
            "entries": lambda row: f"{row.entries:,}",
            "role": lambda row: row.role,
            "matrices": lambda row: str(row.matrices) if row.matrices else f"none: {row.reason}",
        }

    def __repr__(self) -> str:
        return f"Inventory({self.source!r}: {len(self)} tensors, {self.matrices} matrices)"

    @property
    def entries(self) -> int:
        """Number of entries of all tensors."""
        return sum(row.entries for row in self.rows)

    @property
    def analysed(self) -> int:
        """Number of entries of the tensors that would be analysed."""
        return sum(row.entries for row in self.rows if row.matrices)

    @property
    def matrices(self) -> int:
        """Number of matrices that would be analysed."""
        return sum(row.matrices for row in self.rows)

    @property
    def dtypes(self) -> dict[str, int]:
        """Number of entries of each element type."""
        counts: Counter[str] = Counter()
        for row in self.rows:
            counts[row.dtype] += row.entries
        return dict(counts.most_common())

    def to_document(self) -> dict[str, Any]:
        """Return what `to_json` writes, as dictionaries and lists."""
        return {
            "schema": SCHEMA,
            "source": self.source,
            "entries": self.entries,
            "analysed": self.analysed,
            "matrices": self.matrices,
            "dtypes": self.dtypes,
            "provenance": self.provenance.to_dict(),
            "tensors": [jsonable(asdict(row)) for row in self.rows],
        }


@front_door
def inspect(
    model: Any, *, include: NameFilter = None, exclude: NameFilter = None, views: Views | None = None
) -> Inventory:
    """List the tensors of a model and what `mpfast.analyze` would do with each; no weight is read.

    Parameters
    ----------
    model, include, exclude, views
        As `mpfast.analyze`.

    Returns
    -------
    Inventory

    Raises
    ------
    FileNotFoundError
        The path does not exist.
    CheckpointError
        The file is malformed.
    TypeError, ValueError
        As `mpfast.analyze`.

    Examples
    --------
    >>> import numpy as np
    >>> found = inspect({"fc.weight": np.zeros((16, 32)), "fc.bias": np.zeros(16)})
    >>> [(row.name, row.role, row.reason) for row in found]
    [('fc.weight', 'linear', None), ('fc.bias', 'vector', 'vector or scalar (bias, normalisation)')]
    """
    checkpoint = open_checkpoint(model)
    warn_caller("", unseen_quantisation(checkpoint))
    products = AdapterProducts(checkpoint) if has_updates(checkpoint) else None
    roles = roles_of(checkpoint)
    layers, skipped, doubts = select_layers(
        products or checkpoint, include, exclude, checked_views(views), None if products else roles
    )
    for doubt in doubts:
        warn_caller("inspect", doubt)
    matrices = Counter(layer.tensor for layer in layers)
    for product, (first, *others) in (products.factors if products is not None else {}).items():
        # What is analysed is listed with the first of its factors: the product is no tensor of the file.
        matrices[first] += matrices.pop(product, 0)
        skipped |= dict.fromkeys(others, f"a factor of {product}")
        if product in skipped:
            skipped[first] = skipped.pop(product)

    def row(info: TensorInfo) -> InventoryRow:
        role = roles[info.name]
        return InventoryRow(
            info.name,
            info.shape,
            info.dtype,
            info.stored,
            info.size,
            role.kind,
            role.source,
            matrices[info.name],
            skipped.get(info.name) or skipped.get(role.called),
        )

    provenance = provenance_of(model, include=include, exclude=exclude)
    return Inventory(tuple(map(row, checkpoint.tensors)), checkpoint.source, provenance)
