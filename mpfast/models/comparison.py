"""`diff`: what changed between two checkpoints, or between two analyses, row by row."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mpfast.checkpoints import Difference, TensorInfo, counterparts, open_checkpoint, prefetched
from mpfast.models.layer_report import LayerReport, jsonable
from mpfast.models.provenance import Provenance, provenance_of
from mpfast.models.result import ANALYSES_SCHEMA, Analysis
from mpfast.models.result import SCHEMA as ANALYSIS_SCHEMA
from mpfast.models.rows import Rows
from mpfast.support import InputError, InvalidTypeError, InvalidValueError, argument_called, check_path, front_door

__all__ = ["DIFF_COLUMNS", "DiffRow", "ModelDiff", "diff"]

SCHEMA = "mpfast.diff/1"
# Of one analysis, and of several, which is refused.
_SCHEMAS = (ANALYSIS_SCHEMA.encode(), ANALYSES_SCHEMA.encode())


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
    spikes : int or None
        How many more there are in B; None of checkpoints.
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
    verdicts: tuple[str, ...] = ()


#: The columns of a row that are numbers.
DIFF_COLUMNS = ("norm", "change", "largest", "sigma_plus", "ks", "spikes")


@dataclass(frozen=True, repr=False)
class ModelDiff(Rows[DiffRow]):
    """What `mpfast.diff` found: an immutable sequence of `DiffRow`, in the order of A.

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


@front_door
def diff(a: Any, b: Any) -> ModelDiff:
    """Compare two checkpoints weight by weight, or two analyses figure by figure.

    Names are matched as they are, or without what only one side puts in front of all of them.

    Parameters
    ----------
    a, b : path, mapping of arrays, module or Analysis
        As `mpfast.analyze`; or both an `Analysis`, or the path of one in JSON.

    Returns
    -------
    ModelDiff
        One `DiffRow` per tensor of floating-point numbers, or per matrix analysed, that both have.

    Raises
    ------
    FileNotFoundError
        A path does not exist.
    CheckpointError
        A file is malformed.
    TypeError
        One is an analysis, the other is none.
    ValueError
        Nothing of the one matches anything of the other.

    Examples
    --------
    >>> import numpy as np
    >>> before = {"fc.weight": np.eye(16), "out.weight": np.eye(16)}
    >>> after = {"module.fc.weight": np.eye(16), "module.out.weight": 1.5 * np.eye(16)}
    >>> [(row.name, row.change, row.equal) for row in diff(before, after)]
    [('fc.weight', 0.0, True), ('out.weight', 0.5, False)]
    """
    both = (_analysis(a, "a"), _analysis(b, "b"))
    provenance = provenance_of(b, a)
    if both[0] is not None and both[1] is not None:
        return _of_analyses(both[0], both[1], provenance)
    if both[0] is not None or both[1] is not None:
        wrong = "a" if both[0] is None else "b"
        raise InvalidTypeError(wrong, "must be an analysis like the other", "compare two analyses, or two checkpoints")
    with argument_called("a"):
        before = open_checkpoint(a)
    with argument_called("b"):
        after = open_checkpoint(b)
    difference = Difference(after, before)
    names = {difference.base_name(info.name): info.name for info in difference.tensors}
    ordered = [names[info.name] for info in before.tensors if info.name in names]
    rows = []
    for name in prefetched(ordered, difference):
        rows.append(_row(difference, name))
        difference.release(name)
    missing = [(info.name, "only in A") for info in difference.only_in_base]
    others = [(info.name, _in_words_of_b(why)) for info, why in difference.unmatched]
    return ModelDiff(tuple(rows), (*missing, *others), before.source, after.source, False, provenance)


def _in_words_of_b(why: str) -> str:
    return "only in B" if why == "the base has no such tensor" else why.replace("the base has one", "A has one")


def _row(difference: Difference, name: str) -> DiffRow:
    mine, other = difference.pair(name)
    after, before = (np.asarray(array) for array in difference.both(name))
    squares = squared = largest = 0.0
    equal = True
    step = max(1, (1 << 20) // max(1, math.prod(mine.shape[1:])))
    after, before = after.reshape(mine.shape or (1,)), before.reshape(mine.shape or (1,))
    with np.errstate(invalid="ignore", over="ignore"):
        for at in range(0, len(before), step):
            new, old = after[at : at + step].astype(np.float64), before[at : at + step].astype(np.float64)
            delta = new - old
            squares += float(np.square(old).sum())
            squared += float(np.square(delta).sum())
            # NaN is larger than anything, and unlike anything but NaN in the same place.
            largest = float(np.fmax(largest, np.abs(delta).max(initial=0.0))) if not np.isnan(delta).any() else math.nan
            equal = equal and bool(np.array_equal(new, old, equal_nan=True))
    norm, moved = math.sqrt(squares), math.sqrt(squared)
    change = 0.0 if equal else moved / norm if norm else math.inf
    return DiffRow(other.name, mine.name, mine.shape, equal, norm, change, 0.0 if equal else largest)


def _of_analyses(a: Analysis, b: Analysis, provenance: Provenance) -> ModelDiff:
    found = counterparts(*([TensorInfo(row.name, row.shape, row.dtype) for row in side] for side in (a, b)))
    if not found:
        raise InvalidValueError("b", "has none of the names of a")
    there = {row.name: row for row in b}
    rows = tuple(_row_of_reports(row, there[found[row.name]]) for row in a if row.name in found)
    unmatched = [(row.name, "only in A") for row in a if row.name not in found]
    matched = set(found.values())
    unmatched += [(row.name, "only in B") for row in b if row.name not in matched]
    return ModelDiff(rows, tuple(unmatched), a.source, b.source, True, provenance)


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
        verdicts=(before.verdict, after.verdict),
    )


def _relative(before: float, after: float) -> float:
    if before == after:
        return 0.0
    return after / before - 1 if before else math.inf


def _analysis(model: Any, name: str) -> Analysis | None:
    """Return the analysis that `model` is or names; None where it is a checkpoint."""
    if isinstance(model, Analysis):
        return model
    if not isinstance(model, str | os.PathLike):
        return None
    path = Path(check_path(model, name))
    if not path.is_file() or path.name.endswith(".index.json"):
        return None
    with path.open("rb") as file:
        first = file.read(4096)
    if not first.lstrip().startswith(b"{") or not any(schema in first for schema in _SCHEMAS):
        return None
    try:
        return Analysis.from_json(path)
    except InputError as error:
        raise InvalidValueError("", f"{path}: {error.message}") from None
