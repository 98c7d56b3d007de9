"""What a comparison of two checkpoints, or of two analyses, found."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, overload

from mpfast.checkpoints import TensorInfo, counterparts
from mpfast.models.diff_rows import DiffRow, diff_figures
from mpfast.models.html_report.compared import comparison_page
from mpfast.models.layer_json import jsonable
from mpfast.models.layer_report import LayerReport
from mpfast.models.provenance import Provenance
from mpfast.models.rows import Rows
from mpfast.support import InvalidValueError, front_door, rows_as_html

__all__ = ["ModelDiff", "diff_of_rows"]

SCHEMA = "mpfast.diff/1"


@dataclass(frozen=True, repr=False)
class ModelDiff(Rows[DiffRow]):
    """What `mpfast.diff`, or `Analysis.compare`, found: an immutable sequence of `DiffRow`, in the order of A.

    Attributes
    ----------
    rows : tuple of DiffRow
        The tensors, or the matrices analysed, that both have.
    unmatched : tuple of (str, str)
        Names of the others, and why they are not compared.
    a, b : str
        The two.
    analyses : bool
        Whether analyses were compared, and not weights.
    provenance : Provenance
        What made it.
    pairs : tuple of (LayerReport, LayerReport)
        Of analyses, the layers of A and of B that the rows compare; no part of equality.
    """

    rows: tuple[DiffRow, ...]
    unmatched: tuple[tuple[str, str], ...]
    a: str
    b: str
    analyses: bool
    provenance: Provenance = field(compare=False)
    pairs: tuple[tuple[LayerReport, LayerReport], ...] = field(default=(), compare=False)

    def _rows(self) -> tuple[DiffRow, ...]:
        return self.rows

    def _sources(self) -> tuple[str, ...]:
        return (self.a, self.b)

    def _columns_shown(self) -> dict[str, Callable[[DiffRow], str]]:
        return {
            self.nouns[0]: lambda row: row.name,
            "shape": lambda row: "x".join(map(str, row.shape)),
            **diff_figures(self.analyses),
        }

    def _as_html(self) -> str:
        """What changed, how many rows did not, and what has no partner."""
        changed = [row for row in self.rows if not row.equal]
        equal = len(self) - len(changed)
        notes = [f"{equal:,} {self.nouns[equal != 1]} equal in both"] if equal else []
        missing = {"only in one": lambda entry: entry[0], "why": lambda entry: entry[1]}
        return rows_as_html(repr(self), changed, self._columns_shown(), notes) + rows_as_html(
            "", self.unmatched, missing
        )

    def __repr__(self) -> str:
        return f"ModelDiff({self.a!r} to {self.b!r}: {self.changed} of {len(self)} {self.nouns[1]} changed)"

    @property
    def changed(self) -> int:
        """Number of rows that are not equal."""
        return sum(not row.equal for row in self.rows)

    @property
    def nouns(self) -> tuple[str, str]:
        """What a row is of, one and several: any tensor of floating-point numbers, or a matrix that was analysed."""
        return ("matrix", "matrices") if self.analyses else ("tensor", "tensors")

    def to_document(self) -> dict[str, Any]:
        """Return what `to_json` writes, as dictionaries and lists."""
        return {
            "schema": SCHEMA,
            "a": self.a,
            "b": self.b,
            "of": "analyses" if self.analyses else "checkpoints",
            "changed": self.changed,
            "provenance": self.provenance.to_dict(),
            "layers": [jsonable(asdict(row)) for row in self.rows],
            "unmatched": [{"name": name, "reason": reason} for name, reason in self.unmatched],
        }

    @overload
    def to_html(self, path: None = None) -> str: ...
    @overload
    def to_html(self, path: str | os.PathLike[str]) -> None: ...
    @front_door
    def to_html(self, path: str | os.PathLike[str] | None = None) -> str | None:
        """Return the comparison as a page of its own, or write it to `path`, whole or not at all.

        The page needs no network: a map of the changes over block and layer type, a sortable table, and of analyses the
        spectra of every layer in A and in B.

        Raises
        ------
        OSError
            `path` cannot be written, or is what was read, or holds no text; the file is left as it was.
        """
        return self._return_or_write(comparison_page(self.to_document(), self.nouns, self.rows, self.pairs), path)


def diff_of_rows(
    a: Sequence[LayerReport], b: Sequence[LayerReport], sources: tuple[str, str], provenance: Provenance
) -> ModelDiff:
    """Compare the rows of two analyses, matched by name, or without what only one side puts in front of all of them."""
    found = counterparts(*([TensorInfo(row.name, row.shape, row.dtype) for row in side] for side in (a, b)))
    if not found:
        raise InvalidValueError("", "the two analyses have no name in common")
    there = {row.name: row for row in b}
    pairs = tuple((row, there[found[row.name]]) for row in a if row.name in found)
    rows = tuple(_row_of_reports(before, after) for before, after in pairs)
    unmatched = [(row.name, "only in A") for row in a if row.name not in found]
    matched = set(found.values())
    unmatched += [(row.name, "only in B") for row in b if row.name not in matched]
    return ModelDiff(rows, tuple(unmatched), *sources, True, provenance, pairs)


def _row_of_reports(before: LayerReport, after: LayerReport) -> DiffRow:
    same = {"name", "tensor", "seconds"}
    figures = [{key: value for key, value in row.to_dict().items() if key not in same} for row in (before, after)]
    return DiffRow(
        before.name,
        after.name,
        before.shape,
        jsonable(figures[0]) == jsonable(figures[1]),
        before.fro_norm,
        abs(_relative(before.fro_norm, after.fro_norm)),
        sigma_plus=_relative(before.sigma_plus, after.sigma_plus),
        ks=after.ks - before.ks,
        spikes=after.spikes - before.spikes,
        signals=after.signals - before.signals,
        share=after.share - before.share,
        effective_rank=_change_of("entropy_rank", before, after),
        stable_rank=_change_of("stable_rank", before, after),
        verdicts=(before.verdict, after.verdict),
    )


def _relative(before: float, after: float) -> float:
    if before == after:
        return 0.0
    return after / before - 1 if before else math.inf


def _change_of(metric: str, before: LayerReport, after: LayerReport) -> float:
    return _relative(before.metrics.get(metric, math.nan), after.metrics.get(metric, math.nan))
