"""`diff`: what changed between two checkpoints, or between two analyses, row by row."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from mpfast.checkpoints import Difference, open_checkpoint, prefetched
from mpfast.models.diff_rows import DiffRow
from mpfast.models.model_diff import ModelDiff, diff_of_rows
from mpfast.models.provenance import provenance_of
from mpfast.models.result import ANALYSES_SCHEMA, Analysis
from mpfast.models.result import SCHEMA as ANALYSIS_SCHEMA
from mpfast.support import InputError, InvalidTypeError, InvalidValueError, argument_called, check_path, front_door

__all__ = ["diff"]

# Of one analysis, and of several, which is refused.
_SCHEMAS = (ANALYSIS_SCHEMA.encode(), ANALYSES_SCHEMA.encode())


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
        return diff_of_rows(both[0], both[1], (both[0].source, both[1].source), provenance)
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
        if path.suffix == ".json":
            raise InvalidValueError(
                "", f"{path}: is neither a checkpoint nor an analysis in JSON, as analyze writes it"
            )
        return None
    try:
        return Analysis.from_json(path)
    except InputError as error:
        raise InvalidValueError("", f"{path}: {error.message}") from None
