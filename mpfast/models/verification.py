"""`verify`: whether a pruned checkpoint is what its budget and masks say, and else the source."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.checkpoints import MASKS_FILE, Checkpoint, MaskFile, open_checkpoint, prefetched
from mpfast.models.budget import Budget
from mpfast.models.budget_row import LayerBudget, along_inputs, parsed_pattern
from mpfast.models.pruned_output import BUDGET_FILE, content_hash
from mpfast.support import CheckpointError, InputError, front_door

__all__ = ["Verification", "verify"]


@dataclass(frozen=True)
class Verification:
    """What `mpfast.verify` found.

    Attributes
    ----------
    problems : tuple of str
        What is wrong; empty if nothing is.
    layers : int
        Pruned tensors checked.
    untouched : int
        Other tensors found bitwise equal to the source's.
    source : str or None
        The source compared with; None if there was none: then only the pruned tensors could be checked.
    """

    problems: tuple[str, ...]
    layers: int
    untouched: int
    source: str | None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


@front_door
def verify(out: str | os.PathLike[str], source: Any = None) -> Verification:
    """Check a directory that `mpfast.prune` wrote.

    For every pruned tensor: as many entries are masked as the budget says, those are zero, the pattern holds, and,
    where the source is at hand, the others are bitwise those of the source, whose content hash is the budget's. Every
    other tensor is bitwise that of the source.

    Parameters
    ----------
    out : path
        The directory.
    source : path, optional
        The dense checkpoint; default where the budget says it was, if it still is there.

    Returns
    -------
    Verification

    Raises
    ------
    FileNotFoundError
        The directory, its budget or its masks are missing, or `source` is.
    CheckpointError
        A file is malformed.
    TypeError
        `source` is nothing that holds tensors.
    """
    directory = Path(out)
    for file in (BUDGET_FILE, MASKS_FILE):
        if not (directory / file).is_file():
            raise FileNotFoundError(f"{directory / file}: no such file; is this a directory that prune() wrote?")
    try:
        budget = Budget.from_json(directory / BUDGET_FILE)
    except InputError as error:
        raise CheckpointError(f"{directory / BUDGET_FILE}: {error.message}") from None
    masks = MaskFile(directory / MASKS_FILE)
    pruned = open_checkpoint(directory)
    if source is None and _exists(budget.source):
        source = budget.source
    dense = None if source is None else open_checkpoint(source)
    problems = [*_name_problems(budget, masks, pruned, dense), *_mask_problems(budget, masks, pruned, dense)]
    if dense is None:
        return Verification(tuple(problems), len(budget), 0, None)
    common = set(pruned.tensors).intersection(dense.tensors)
    others = [info.name for info in dense.tensors if info in common and info.name not in _names(budget)]
    changed = _changed(others, pruned, dense)
    problems += [f"{name}: is not pruned, but differs from the source" for name in changed]
    return Verification(tuple(problems), len(budget), len(others) - len(changed), dense.source)


def _names(budget: Budget) -> set[str]:
    return {row.file_name for row in budget}


def _exists(source: str) -> bool:
    try:
        return Path(source).exists()
    except (OSError, ValueError):  # no name that the system takes
        return False


def _name_problems(budget: Budget, masks: MaskFile, pruned: Checkpoint, dense: Checkpoint | None) -> list[str]:
    """Say where checkpoint, budget, masks and source list different tensors."""
    problems = []
    budgeted = _names(budget)
    infos = {info.name: info for info in pruned.tensors}
    for row in budget:
        name = row.file_name
        if name not in infos:
            problems.append(f"{name}: is in the budget, but not in the checkpoint")
        elif name not in masks:
            problems.append(f"{name}: is in the budget, but has no mask")
        elif not infos[name].shape == row.shape == masks.shape_of(name):
            problems.append(f"{name}: checkpoint, budget and mask differ in shape")
    problems += [f"{name}: has a mask, but is not in the budget" for name in masks if name not in budgeted]
    if dense is not None and list(infos.values()) != list(dense.tensors):
        problems.append("names, order, shapes or types of the tensors differ from the source's")
    return problems


def _mask_problems(budget: Budget, masks: MaskFile, pruned: Checkpoint, dense: Checkpoint | None) -> list[str]:
    """Go through the pruned tensors that are there in the shape that the budget says."""
    both = [pruned] if dense is None else [pruned, dense]
    # A tensor that is in one of the two only is among the problems already.
    common = set.intersection(*(set(checkpoint.tensors) for checkpoint in both))
    shapes = {info.name: info.shape for info in common}
    rows = {row.file_name: row for row in budget}
    masked = [name for name, row in rows.items() if name in masks and shapes.get(name) == row.shape]
    masked = [name for name in masked if masks.shape_of(name) == rows[name].shape]
    problems = []
    for name in prefetched(masked, *both):
        problems += _layer_problems(rows[name], budget.pattern, masks[name], pruned, dense)
    return problems


def _changed(names: Sequence[str], pruned: Checkpoint, dense: Checkpoint) -> list[str]:
    """Return the names of the tensors whose bits differ."""
    changed = []
    for name in prefetched(names, pruned, dense):
        if not np.array_equal(_bits(pruned.read(name)), _bits(dense.read(name))):
            changed.append(name)
        pruned.release(name)
        dense.release(name)
    return changed


def _layer_problems(
    row: LayerBudget, pattern: str | None, keep: NDArray[np.bool_], pruned: Checkpoint, dense: Checkpoint | None
) -> list[str]:
    problems = []
    masked = int(keep.size - np.count_nonzero(keep))
    if masked != row.pruned:
        problems.append(f"{row.name}: the mask prunes {masked} entries, the budget {row.pruned}")
    groups = None if pattern is None else parsed_pattern(pattern)
    if groups is not None:
        problems += _pattern_problems(row.name, along_inputs(keep, row.input_axes or ()), *groups)
    bits = _bits(pruned.read(row.file_name))
    if bits.size != keep.size:
        return [*problems, f"{row.name}: has entries of a type that is not pruned"]
    bits = bits.reshape(keep.shape)
    gone = ~keep
    if np.multiply(bits, gone, dtype=bits.dtype).any():
        problems.append(f"{row.name}: {np.count_nonzero(bits[gone])} masked entries are not zero")
    if dense is not None:
        original = np.ascontiguousarray(_bits(dense.read(row.file_name)).reshape(keep.shape))
        if not np.array_equal(np.multiply(bits, keep, dtype=bits.dtype), np.multiply(original, keep, dtype=bits.dtype)):
            changed = int(np.count_nonzero((bits != original) & keep))
            problems.append(f"{row.name}: {changed} entries that are kept differ from the source")
        if row.content is not None and row.content != content_hash(original):
            problems.append(f"{row.name}: the source is not the one that was pruned: its content hash differs")
        dense.release(row.file_name)
    pruned.release(row.file_name)
    return problems


def _pattern_problems(name: str, keep: NDArray[np.bool_], n: int, m: int) -> list[str]:
    if keep.size % m:
        return [f"{name}: {keep.size} entries are no groups of {m}"]
    wrong = int(np.count_nonzero(np.count_nonzero(keep.reshape(-1, m), axis=1) != n))
    return [f"{name}: {wrong} groups of {m} do not keep {n}"] if wrong else []


def _bits(tensor: NDArray[Any]) -> NDArray[Any]:
    """Return the entries as integers of their size: equality of bits, NaN included."""
    contiguous = np.ascontiguousarray(tensor)
    kind = f"u{contiguous.itemsize}" if contiguous.itemsize in (1, 2, 4, 8) else "u1"
    return contiguous.reshape(-1).view(kind)
