"""The rows of a comparison, and those of two analyses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mpfast.checkpoints import TensorInfo, counterparts
from mpfast.models.layer_json import jsonable
from mpfast.models.layer_report import LayerReport
from mpfast.models.provenance import Provenance
from mpfast.models.rows import Rows
from mpfast.support import InvalidValueError, rows_as_html

__all__ = ["DIFF_COLUMNS", "DiffRow", "ModelDiff", "diff_figures", "diff_of_rows"]

SCHEMA = "mpfast.diff/1"


@dataclass(frozen=True)
class DiffRow:
    """What changed in one tensor, or of analyses in one matrix, from A to B.

    Attributes
    ----------
    name, other : str
        Its name in A and in B.
    shape : tuple of int
        Of the tensor; of analyses, of the matrix.
    equal : bool
        Whether the two are the same: every entry, or of analyses every figure but the time.
    norm : float
        Frobenius norm ``||W||`` in A.
    change : float
        ``||delta|| / ||W||``, delta being B - A; infinite where A is zero and B is not. Of analyses, which hold no
        weights: the change of the norm, ``| ||W_B|| / ||W_A|| - 1 |``, which it is at least.
    largest : float or None
        Largest ``|delta|`` of an entry; None of analyses.
    sigma_plus, ks : float or None
        How much larger the edge is in B, relative to A, and the distance of the fit, absolutely; None of checkpoints.
    spikes, signals : int or None
        How many more there are in B; None of checkpoints.
    share : float or None
        How much more of the energy is fitted noise in B, absolutely; None of checkpoints.
    effective_rank, stable_rank : float or None
        How much larger they are in B, relative to A; None of checkpoints.
    verdicts : tuple of str
        Of A and of B; empty of checkpoints.
    """

    name: str
    other: str
    shape: tuple[int, ...]
    equal: bool
    norm: float
    change: float
    largest: float | None = None
    sigma_plus: float | None = None
    ks: float | None = None
    spikes: int | None = None
    signals: int | None = None
    share: float | None = None
    effective_rank: float | None = None
    stable_rank: float | None = None
    verdicts: tuple[str, ...] = ()


#: The columns of a row that are numbers.
DIFF_COLUMNS = (
    *("norm", "change", "largest", "sigma_plus", "ks"),
    *("spikes", "signals", "share", "effective_rank", "stable_rank"),
)


def diff_figures(analyses: bool) -> dict[str, Callable[[DiffRow], str]]:
    """Return by heading what a table shows of a row besides its name and shape."""
    if not analyses:
        return {"change": lambda row: f"{row.change:.3g}", "largest": lambda row: f"{row.largest:.3g}"}
    return {
        "norm": lambda row: f"{row.change:.2%}",
        "sigma+": lambda row: f"{row.sigma_plus:+.2%}",
        "KS": lambda row: f"{row.ks:+.3f}",
        "spikes": lambda row: f"{row.spikes:+d}",
        "signals": lambda row: f"{row.signals:+d}",
        "share": lambda row: f"{row.share:+.3f}",
        "eff.rank": lambda row: f"{row.effective_rank:+.2%}",
        "noise": lambda row: " -> ".join(dict.fromkeys(row.verdicts)),
    }


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
    """

    rows: tuple[DiffRow, ...]
    unmatched: tuple[tuple[str, str], ...]
    a: str
    b: str
    analyses: bool
    provenance: Provenance = field(compare=False)

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

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the rows, and what has no partner."""
        missing = {"only in one": lambda entry: entry[0], "why": lambda entry: entry[1]}
        return super()._repr_html_() + (rows_as_html("", self.unmatched, missing) if self.unmatched else "")

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


def diff_of_rows(
    a: Sequence[LayerReport], b: Sequence[LayerReport], sources: tuple[str, str], provenance: Provenance
) -> ModelDiff:
    """Compare the rows of two analyses, matched by name, or without what only one side puts in front of all of them."""
    found = counterparts(*([TensorInfo(row.name, row.shape, row.dtype) for row in side] for side in (a, b)))
    if not found:
        raise InvalidValueError("", "the two analyses have no name in common")
    there = {row.name: row for row in b}
    rows = tuple(_row_of_reports(row, there[found[row.name]]) for row in a if row.name in found)
    unmatched = [(row.name, "only in A") for row in a if row.name not in found]
    matched = set(found.values())
    unmatched += [(row.name, "only in B") for row in b if row.name not in matched]
    return ModelDiff(rows, tuple(unmatched), *sources, True, provenance)


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
