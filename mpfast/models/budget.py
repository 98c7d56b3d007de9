"""A pruning budget: how many entries of each layer go, with the spectra that say so; and its forms on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import overload

from mpfast.models.budget_row import LayerBudget, parsed_pattern, row_from
from mpfast.models.exporters import EXPORTERS
from mpfast.support import InputError, InvalidValueError, front_door, read_document, return_or_write

__all__ = ["Budget"]

SCHEMA = "mpfast.budget/1"


@dataclass(frozen=True, repr=False)
class Budget(Sequence[LayerBudget]):
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
    """

    layers: tuple[LayerBudget, ...]
    method: str
    sparsity: float
    pattern: str | None
    source: str

    granularity = "layer"

    @overload
    def __getitem__(self, index: int) -> LayerBudget: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[LayerBudget, ...]: ...
    def __getitem__(self, index: int | slice) -> LayerBudget | tuple[LayerBudget, ...]:
        return self.layers[index]

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[LayerBudget]:
        return iter(self.layers)

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

    @overload
    def to_json(self, path: None = None) -> str: ...
    @overload
    def to_json(self, path: str | os.PathLike[str]) -> None: ...
    def to_json(self, path: str | os.PathLike[str] | None = None) -> str | None:
        """Return the budget as JSON text, or write it to `path`, whole or not at all.

        Raises
        ------
        OSError
            `path` cannot be written.
        """
        document = {
            "schema": SCHEMA,
            "granularity": self.granularity,
            "method": self.method,
            "pattern": self.pattern,
            "sparsity": self.sparsity,
            "entries": self.entries,
            "pruned": self.pruned,
            "source": self.source,
            "layers": [asdict(row) for row in self.layers],
        }
        return return_or_write(json.dumps(document, indent=1, allow_nan=False) + "\n", path)

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
            return cls(layers, record.text("method"), record.number("sparsity", 0, 1), pattern, record.text("source"))
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
