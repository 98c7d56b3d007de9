"""The rows of `mpfast.models.ranks`: by matrix the ranks that relative errors ask for."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, overload

from mpfast.models.csv_text import csv_line
from mpfast.models.layer_json import jsonable
from mpfast.models.provenance import Provenance
from mpfast.models.rows import Rows
from mpfast.models.skipped import SkippedTensor, is_non_finite
from mpfast.support import InvalidValueError, front_door

__all__ = ["LayerRank", "ModelRanks", "RankRow"]

SCHEMA = "mpfast.ranks/1"


@dataclass(frozen=True)
class LayerRank:
    """What a relative error asks of a layer.

    Attributes
    ----------
    wanted : float
        The relative error.
    rank : int
        The least that leaves no more.
    rank_error : float
        One standard error of it; 0 where all singular values were computed.
    error : float
        What this rank leaves, as measured.
    entries : int
        Of both factors.
    """

    wanted: float
    rank: int
    rank_error: float
    error: float
    entries: int


@dataclass(frozen=True)
class RankRow:
    """The ranks of one matrix.

    Attributes
    ----------
    name, kind : str
        Of the matrix, see `LayerReport`.
    shape : (int, int)
        (out, in); as stored, where it is not known which side the inputs are on.
    entries : int
        Of the matrix.
    paying_rank : int
        The largest rank whose factors have fewer entries than the matrix, below ``m n / (m + n)``; 0 where there is
        none.
    weights : tuple of LayerRank
        For each error, ``||W - W_k|| / ||W||`` in the Frobenius norm.
    outputs : tuple of LayerRank
        For each error, of the outputs of inputs like those that the moments are of: the root of their mean square error
        over their mean square. Empty where there is no moment.
    reason : str or None
        Why there is no moment, where moments were given.
    unmet_tolerance : str
        What was reached where `tol` was not met; else empty.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    entries: int
    paying_rank: int
    weights: tuple[LayerRank, ...]
    outputs: tuple[LayerRank, ...]
    reason: str | None
    unmet_tolerance: str

    @property
    def best(self) -> tuple[LayerRank, ...]:
        """The ranks of the outputs where there are any, else those of the weights."""
        return self.outputs or self.weights


@dataclass(frozen=True, repr=False)
class ModelRanks(Rows[RankRow]):
    """What `mpfast.models.ranks` found: an immutable sequence of `RankRow`, in the order of the checkpoint.

    Attributes
    ----------
    rows : tuple of RankRow
        All matrices.
    errors : tuple of float
        The relative errors that ranks were asked for.
    skipped : tuple of SkippedTensor
        What has no rank, and why.
    source : str
        The checkpoint.
    has_moments : bool
        Whether moments were given.
    provenance : Provenance
        What made it.
    """

    rows: tuple[RankRow, ...]
    errors: tuple[float, ...]
    skipped: tuple[SkippedTensor, ...]
    source: str
    has_moments: bool
    provenance: Provenance = field(compare=False)

    def _rows(self) -> tuple[RankRow, ...]:
        return self.rows

    def _sources(self) -> tuple[str, ...]:
        return (self.source,)

    def _columns_shown(self) -> dict[str, Callable[[RankRow], str]]:
        def rank_at(number: int) -> Callable[[RankRow], str]:
            return lambda row: str(row.best[number].rank)

        return {
            "matrix": lambda row: row.name,
            "shape": lambda row: "x".join(map(str, row.shape)),
            **{f"rank for {error:g}": rank_at(number) for number, error in enumerate(self.errors)},
            "of": lambda row: "outputs" if row.outputs else "weights",
        }

    def __repr__(self) -> str:
        listed = ", ".join(f"{error:g}" for error in self.errors)
        return f"ModelRanks({self.source!r}: {len(self)} matrices, for errors of {listed})"

    @property
    def non_finite(self) -> tuple[SkippedTensor, ...]:
        """The matrices that were to be looked at and hold NaN or infinities; their reasons say how many, and where."""
        return tuple(tensor for tensor in self.skipped if is_non_finite(tensor))

    @front_door
    def at(self, error: float) -> dict[str, int]:
        """Return the rank of every matrix for one of the errors: of its outputs where they are known, else of itself.

        Raises
        ------
        ValueError
            The error is none of those that ranks were asked for.
        """
        if error not in self.errors:
            raise InvalidValueError("error", f"must be one of {', '.join(map(str, self.errors))}, not {error!r}")
        number = self.errors.index(error)
        return {row.name: row.best[number].rank for row in self.rows}

    def share(self, number: int, *, outputs: bool) -> float:
        """Share of the entries that factors of the ranks for one of the errors have, by its place in `errors`.

        A matrix whose factors would have more than itself counts as it is, and so does, with `outputs`, one without
        ranks of its outputs.
        """
        total = sum(row.entries for row in self.rows)
        left = 0
        for row in self.rows:
            found = row.outputs if outputs else row.weights
            left += min(found[number].entries, row.entries) if found else row.entries
        return left / total

    def to_document(self) -> dict[str, Any]:
        """Return what `to_json` writes, as dictionaries and lists."""
        return {
            "schema": SCHEMA,
            "source": self.source,
            "errors": list(self.errors),
            "shares": {
                "weights": [self.share(number, outputs=False) for number in range(len(self.errors))],
                "outputs": [self.share(number, outputs=True) for number in range(len(self.errors))]
                if self.has_moments
                else None,
            },
            "provenance": self.provenance.to_dict(),
            "layers": [jsonable(asdict(row)) for row in self.rows],
            "skipped": [tensor._asdict() for tensor in self.skipped],
        }

    @overload
    def to_csv(self, path: None = None) -> str: ...
    @overload
    def to_csv(self, path: str | os.PathLike[str]) -> None: ...
    @front_door
    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str | None:
        """Return a line for each matrix and error as CSV text, or write it to `path`, whole or not at all.

        Raises
        ------
        OSError
            As `to_json`.
        """
        names = ("name", "kind", "shape", "entries", "paying_rank", "of")
        figures = ("wanted", "rank", "rank_error", "error", "factor_entries")
        lines = [csv_line((*names, *figures))]
        for row in self.rows:
            of_row = (row.name, row.kind, "x".join(map(str, row.shape)), row.entries, row.paying_rank)
            for of, found in (("weights", row.weights), ("outputs", row.outputs)):
                lines += [csv_line((*of_row, of, *asdict(rank).values())) for rank in found]
        return self._return_or_write("".join(lines), path)
