"""A pruning budget: how many entries of each layer go, with the spectra that say so; and its forms on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from mpfast.models.budget_row import LayerBudget, row_from
from mpfast.models.exporters import EXPORTERS
from mpfast.models.provenance import Provenance
from mpfast.models.rows import Rows
from mpfast.support import InputError, InvalidValueError, front_door, parsed_pattern, percent, read_document

__all__ = ["Budget"]

SCHEMA = "mpfast.budget/1"


@dataclass(frozen=True, repr=False)
class Budget(Rows[LayerBudget]):
    """Sparsity per layer, an immutable sequence of `LayerBudget` in the order of the checkpoint.

    Attributes
    ----------
    layers : tuple of LayerBudget
        The rows; layers that stay dense on purpose are not among them.
    method : str
        How it was made.
    sparsity : float
        Share of the entries of all rows that was asked for.
    pattern : str or None
        ``"2:4"`` and the like; None where any entry may go.
    source : str
        The checkpoint.
    dense : tuple of (str, tuple of int)
        Names and shapes of the checkpoint's other tensors of two or more dimensions, which stay dense.
    model_entries : int or None
        Number of entries of all tensors of the checkpoint that hold floating-point numbers; None where it is not known.
    provenance : Provenance or None
        What made it, from what; no part of equality.
    """

    layers: tuple[LayerBudget, ...]
    method: str
    sparsity: float
    pattern: str | None
    source: str
    dense: tuple[tuple[str, tuple[int, ...]], ...] = ()
    model_entries: int | None = None
    provenance: Provenance | None = field(default=None, compare=False)

    granularity = "layer"

    def _rows(self) -> tuple[LayerBudget, ...]:
        return self.layers

    def _sources(self) -> tuple[str, ...]:
        return (self.source,)

    def _columns_shown(self) -> dict[str, Callable[[LayerBudget], str]]:
        return {
            "layer": lambda row: row.name,
            "shape": lambda row: "x".join(map(str, row.shape)),
            "pruned": lambda row: f"{row.pruned:,}",
            "sparsity": lambda row: percent(row.sparsity, 2),
            "rank": lambda row: "?" if row.rank is None else str(row.rank),
        }

    def __repr__(self) -> str:
        return f"Budget({self.method}: {self.pruned} of {self.entries} entries in {len(self.layers)} layers)"

    @property
    def entries(self) -> int:
        """Number of entries of all rows."""
        return sum(row.size for row in self.layers)

    @property
    def pruned(self) -> int:
        """Number of entries pruned in all rows."""
        return sum(row.pruned for row in self.layers)

    @property
    def model_share(self) -> float | None:
        """Share of the whole model's entries that is pruned; None where the model is not known."""
        return self.pruned / self.model_entries if self.model_entries else None

    def to_document(self) -> dict[str, Any]:
        """Return what `to_json` writes, as dictionaries and lists."""
        return {
            "schema": SCHEMA,
            "granularity": self.granularity,
            "method": self.method,
            "pattern": self.pattern,
            "sparsity": self.sparsity,
            "entries": self.entries,
            "pruned": self.pruned,
            "model_entries": self.model_entries,
            "source": self.source,
            "provenance": None if self.provenance is None else self.provenance.to_dict(),
            "layers": [asdict(row) for row in self.layers],
            "dense": [{"name": name, "shape": shape} for name, shape in self.dense],
        }

    @classmethod
    @front_door
    def from_json(cls, source: str | os.PathLike[str]) -> Budget:
        """Rebuild a budget from the text of `to_json` (a string that starts with ``{``) or from a file.

        Raises
        ------
        ValueError
            The text is no JSON, not of this schema, or a field is wrong: the message names it.
        OSError
            The file cannot be read.
        """
        try:
            record = read_document(source, SCHEMA)
            layers = tuple(row_from(entry) for entry in record.records("layers"))
            names = [row.name for row in layers]
            if len(set(names)) != len(names):
                raise InvalidValueError("", "the budget has two rows of the same name")
            pattern = record.optional_text("pattern")
            if pattern is not None and parsed_pattern(pattern) is None:
                raise record.refuse("pattern", "null or of the form 2:4")
            dense = record.records("dense") if record.has("dense") else []
            return cls(
                layers,
                record.text("method"),
                record.number("sparsity", 0, 1),
                pattern,
                record.text("source"),
                tuple((entry.text("name"), entry.shape("shape")) for entry in dense),
                record.integer("model_entries") if record.has("model_entries") else None,
                Provenance.from_record(record.record("provenance")) if record.has("provenance") else None,
            )
        except InputError:
            raise
        except ValueError as error:
            raise InvalidValueError("", str(error)) from None

    @front_door
    def export(self, format: str) -> str:
        """Return the budget as another tool reads it.

        Parameters
        ----------
        format : str
            Name of one of `mpfast.models.EXPORTERS`, where each says what it is.

        Raises
        ------
        ValueError
            An unknown format, or one that needs what this budget lacks.
        """
        if not isinstance(format, str) or format not in EXPORTERS:
            raise InvalidValueError("format", f"must be one of {', '.join(EXPORTERS)}, not {format!r}")
        return EXPORTERS[format].text(self)
