"""`verify`: whether a pruned checkpoint is what its budget and masks say, and else the source."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.checkpoints import (
    MASKS_FILE,
    Checkpoint,
    MaskFile,
    TensorInfo,
    content_hash,
    home_directory,
    open_checkpoint,
    prefetched,
    shards_of,
    stored,
    stored_bits,
)
from mpfast.models.budget import Budget
from mpfast.models.budget_row import LayerBudget, along_inputs
from mpfast.models.output_mark import SourceRecord
from mpfast.models.provenance import provenance_of
from mpfast.models.pruned_output import BUDGET_FILE
from mpfast.support import CheckpointError, InputError, front_door, parsed_pattern, restore_directory

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
        Other tensors found bitwise equal to the source's: compared with it or, where it is not at hand, with the
        hashes of its tensors.
    source : str or None
        The source compared with; None if there was none: then the entries that the masks keep could not be compared.
    not_compared : tuple of str
        What was not looked at, a sentence each: nothing is known of it.
    source_hash : str or None
        Hash of the source that was pruned, as the output's mark gives it; None where it does not.
    """

    problems: tuple[str, ...]
    layers: int
    untouched: int
    source: str | None
    not_compared: tuple[str, ...] = ()
    source_hash: str | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_document(self, out: str | os.PathLike[str]) -> dict[str, Any]:
        """Return what ``mpfast verify --json`` writes about the directory `out`, as dictionaries and lists."""
        return {
            "schema": "mpfast.verify/1",
            "ok": self.ok,
            "out": str(out),
            "source": self.source,
            "layers": self.layers,
            "untouched": self.untouched,
            "problems": list(self.problems),
            "not_compared": list(self.not_compared),
            "source_hash": self.source_hash,
            "provenance": provenance_of(out, self.source).to_dict(),
        }


@front_door
def verify(out: str | os.PathLike[str], source: Any = None) -> Verification:
    """Check a directory that `mpfast.prune` wrote.

    For every pruned tensor: as many entries are masked as the budget says, those are zero, the pattern holds, and,
    where the source is at hand, the others are bitwise those of the source, whose content hash is the budget's. Every
    other tensor is bitwise that of the source. The source is known by the hashes of its tensors, not by its name: one
    that was moved verifies, one that was edited does not.

    Parameters
    ----------
    out : path
        The directory.
    source : path, mapping of arrays or module, optional
        The dense checkpoint, of any format that is read; default where the budget says it was, if it still is there.

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
    restore_directory(directory)
    for file in (BUDGET_FILE, MASKS_FILE):
        if not (directory / file).is_file():
            raise FileNotFoundError(f"{directory / file}: no such file; is this a directory that prune() wrote?")
    try:
        budget = Budget.from_json(directory / BUDGET_FILE)
    except InputError as error:
        raise CheckpointError(f"{directory / BUDGET_FILE}: {error.message}") from None
    if source is None and _exists(budget.source):
        source = budget.source
    comparison = _Comparison(
        budget,
        MaskFile(directory / MASKS_FILE),
        open_checkpoint(directory),
        None if source is None else open_checkpoint(source),
        SourceRecord.of(directory),
    )
    return comparison.run()


def _exists(source: str) -> bool:
    try:
        return Path(source).exists()
    except (OSError, ValueError):  # no name that the system takes
        return False


@dataclass
class _Comparison:
    """Compares an output with its budget, its masks and, as far as they are there, its source and its mark."""

    budget: Budget
    masks: MaskFile
    pruned: Checkpoint
    dense: Checkpoint | None
    record: SourceRecord | None

    def __post_init__(self) -> None:
        self._mine = _by_name(self.pruned)
        self._its = {} if self.dense is None else _by_name(self.dense)

    def run(self) -> Verification:
        problems = [
            *_name_problems(self.budget, self.masks, self.pruned, self.dense),
            *self._mask_problems(),
        ]
        budgeted = {row.file_name for row in self.budget}
        others = [info for info in self.pruned.tensors if info.name not in budgeted]
        untouched, unknown = 0, []
        both = [self.pruned]
        if self.dense is not None and all(info.name in self._its for info in others):
            both.append(self.dense)
        for name in prefetched([info.name for info in others], *both):
            found = self._is_untouched(name)
            if found is None:
                unknown.append(name)
            elif found or self._is_pruned_with_another(name):
                untouched += found
            else:
                problems.append(self._difference(name))
        return Verification(
            tuple(problems),
            len(self.budget),
            untouched,
            None if self.dense is None else self.dense.source,
            tuple(self._not_compared(unknown)),
            None if self.record is None else self.record.hash,
        )

    def _is_untouched(self, name: str) -> bool | None:
        """Whether a tensor is the source's; None where there is nothing to tell by."""
        if self.dense is not None:
            info = self._its.get(name)
            if info is None or _key(info) != _key(self._mine[name]):
                return None  # among the problems already
            mine = np.frombuffer(stored_bits(self.pruned, name), np.uint8)
            same = np.array_equal(mine, np.frombuffer(self._dense_bits(name), np.uint8))
            self.dense.release(name)
        elif (content := self._recorded(name)) is not None:
            same = content == self._content(name)
        else:
            return None
        self.pruned.release(name)
        return same

    def _is_pruned_with_another(self, name: str) -> bool:
        """Whether a tensor was the same as a pruned one and still is: another name of its memory."""
        mine = self._mine[name]
        for row in self.budget:
            twin = self._mine.get(row.file_name)
            if twin is None or (twin.shape, twin.dtype) != (mine.shape, mine.dtype):
                continue
            if self._were_equal(name, twin.name) and stored_bits(self.pruned, name) == stored_bits(
                self.pruned, twin.name
            ):
                return True
        return False

    def _were_equal(self, name: str, other: str) -> bool:
        if self.dense is not None:
            return other in self._its and self._dense_bits(name) == self._dense_bits(other)
        content = self._recorded(name)
        return content is not None and content == self._recorded(other)

    def _recorded(self, name: str) -> str | None:
        return None if self.record is None else self.record.tensors.get(name)

    def _content(self, name: str) -> str:
        return f"sha256:{hashlib.sha256(stored_bits(self.pruned, name)).hexdigest()}"

    def _dense_bits(self, name: str) -> memoryview:
        assert self.dense is not None
        if shards_of(self.dense):  # also types that are not read
            return stored_bits(self.dense, name)
        return _bits(self.dense.read(name), name).view(np.uint8).data

    def _difference(self, name: str) -> str:
        """Say which of the two is not what it was, as far as the output's mark tells."""
        content = self._recorded(name)
        if self.dense is None:
            return f"{name}: is not pruned, but its content hash is not that of the source"
        if content is not None and content == self._content(name):
            return f"{name}: the source is not the one that was pruned: this tensor, which is not pruned, differs"
        return f"{name}: is not pruned, but differs from the source"

    def _not_compared(self, unknown: Sequence[str]) -> list[str]:
        found = []
        if self.dense is None:
            kept = self.budget.entries - self.budget.pruned
            found.append(f"the {kept:,} entries that the masks keep: the dense model is not at hand")
            if unknown:
                found.append(f"{_some(unknown)}: the dense model is not at hand")
        elif unknown:
            found.append(f"{_some(unknown)}: the dense model has no such tensor, or of another type or shape")
        if self.dense is not None:
            lost = [name for name in self._its if name not in self._mine]
            if lost:
                found.append(f"{_some(lost)}: in the dense model only")
        if home_directory(self.pruned) is not None:
            found.append("files beside the weights (configuration, tokenizer)")
        return found

    def _mask_problems(self) -> list[str]:
        """Go through the pruned tensors that are there in the shape that the budget says."""
        both = [self.pruned] if self.dense is None else [self.pruned, self.dense]
        # A tensor that is in one of the two only is among the problems already.
        common = set.intersection(*({_key(info) for info in checkpoint.tensors} for checkpoint in both))
        shapes = {name: shape for name, shape, _ in common}
        rows = {row.file_name: row for row in self.budget}
        masked = [name for name, row in rows.items() if name in self.masks and shapes.get(name) == row.shape]
        masked = [name for name in masked if self.masks.shape_of(name) == rows[name].shape]
        problems = []
        for name in prefetched(masked, *both):
            problems += self._layer_problems(rows[name], self.masks[name])
        return problems

    def _layer_problems(self, row: LayerBudget, keep: NDArray[np.bool_]) -> list[str]:
        problems = []
        masked = int(keep.size - np.count_nonzero(keep))
        if masked != row.pruned:
            problems.append(f"{row.name}: the mask prunes {masked} entries, the budget {row.pruned}")
        groups = None if self.budget.pattern is None else parsed_pattern(self.budget.pattern)
        if groups is not None:
            problems += _pattern_problems(row.name, along_inputs(keep, row.input_axes or ()), *groups)
        bits = _bits(self.pruned.read(row.file_name), row.name)
        if bits.size != keep.size:
            return [*problems, f"{row.name}: has entries of a type that is not pruned"]
        bits = bits.reshape(keep.shape)
        gone = ~keep
        if np.multiply(bits, gone, dtype=bits.dtype).any():
            problems.append(f"{row.name}: {np.count_nonzero(bits[gone])} masked entries are not zero")
        if self.dense is not None:
            original = _bits(self.dense.read(row.file_name), row.name).reshape(keep.shape)
            kept = [np.multiply(side, keep, dtype=bits.dtype) for side in (bits, original)]
            if not np.array_equal(*kept):
                changed = int(np.count_nonzero((bits != original) & keep))
                problems.append(f"{row.name}: {changed} entries that are kept differ from the source")
            if row.content is not None and row.content != content_hash(original):
                problems.append(f"{row.name}: the source is not the one that was pruned: its content hash differs")
            self.dense.release(row.file_name)
        self.pruned.release(row.file_name)
        return problems


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} tensors ({names[0]}, ...)"


def _key(info: TensorInfo) -> tuple[str, tuple[int, ...], str]:
    return info.name, info.shape, info.dtype


def _by_name(checkpoint: Checkpoint) -> dict[str, TensorInfo]:
    return {info.name: info for info in checkpoint.tensors}


def _name_problems(budget: Budget, masks: MaskFile, pruned: Checkpoint, dense: Checkpoint | None) -> list[str]:
    """Say where checkpoint, budget, masks and source list different tensors."""
    problems = []
    budgeted = {row.file_name for row in budget}
    infos = _by_name(pruned)
    for row in budget:
        name = row.file_name
        if name not in infos:
            problems.append(f"{name}: is in the budget, but not in the checkpoint")
        elif name not in masks:
            problems.append(f"{name}: is in the budget, but has no mask")
        elif not infos[name].shape == row.shape == masks.shape_of(name):
            problems.append(f"{name}: checkpoint, budget and mask differ in shape")
    problems += [f"{name}: has a mask, but is not in the budget" for name in masks if name not in budgeted]
    if dense is not None and list(map(_key, infos.values())) != list(map(_key, dense.tensors)):
        problems.append("names, order, shapes or types of the tensors differ from the source's")
    return problems


def _pattern_problems(name: str, keep: NDArray[np.bool_], n: int, m: int) -> list[str]:
    if keep.size % m:
        return [f"{name}: {keep.size} entries are no groups of {m}"]
    wrong = int(np.count_nonzero(np.count_nonzero(keep.reshape(-1, m), axis=1) != n))
    return [f"{name}: {wrong} groups of {m} do not keep {n}"] if wrong else []


def _bits(tensor: Any, name: str) -> NDArray[Any]:
    """Return the entries as integers of their size, in the machine's byte order: equality of bits, NaN included."""
    contiguous = np.ascontiguousarray(stored(tensor, name))
    kind = f"u{contiguous.itemsize}" if contiguous.itemsize in (1, 2, 4, 8) else "u1"
    return contiguous.reshape(-1).view(kind)
