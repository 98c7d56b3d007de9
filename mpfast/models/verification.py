"""`verify`: whether a checkpoint that was pruned or compressed is what it says, and else the source."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.checkpoints import (
    MASKS_FILE,
    Checkpoint,
    Dequantised,
    MaskFile,
    content_hash,
    dense_copy,
    home_directory,
    open_checkpoint,
    prefetched,
)
from mpfast.models.budget import Budget
from mpfast.models.budget_row import LayerBudget, along_inputs
from mpfast.models.compression_check import CompressedOutput, layers_of
from mpfast.models.narrowing_check import NarrowedOutput, NarrowMark
from mpfast.models.output_mark import SourceRecord
from mpfast.models.provenance import provenance_of
from mpfast.models.pruned_output import BUDGET_FILE
from mpfast.models.written_tensors import Contents, WrittenTensors, bits_of, by_name, key_of, some
from mpfast.support import (
    MARK_FILE,
    CheckpointError,
    InputError,
    InvalidValueError,
    argument_called,
    check_path,
    front_door,
    parsed_pattern,
    read_mark,
    restore_directory,
)

__all__ = ["Verification", "verify"]


@dataclass(frozen=True)
class Verification:
    """What `mpfast.verify` found.

    Attributes
    ----------
    problems : tuple of str
        What is wrong; empty if nothing is.
    layers : int
        Pruned tensors, factored matrices, or ones with fewer inputs, that were checked.
    untouched : int
        Other tensors found bitwise equal to the source's: compared with it or, where it is not at hand, with the
        hashes of its tensors.
    source : str or None
        The source compared with; None if there was none: then what is left of pruned or factored tensors could not be
        compared.
    not_compared : tuple of str
        What was not looked at, a sentence each: nothing is known of it.
    source_hash : str or None
        Hash of the source, as the output's mark gives it; None where it does not.
    command : {"prune", "compress", "narrow"}
        What wrote the directory.
    """

    problems: tuple[str, ...]
    layers: int
    untouched: int
    source: str | None
    not_compared: tuple[str, ...] = ()
    source_hash: str | None = None
    command: str = "prune"

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_document(self, out: str | os.PathLike[str]) -> dict[str, Any]:
        """Return what ``mpfast verify --json`` writes about the directory `out`, as dictionaries and lists."""
        return {
            "schema": "mpfast.verify/1",
            "ok": self.ok,
            "command": self.command,
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
    """Check a directory that `mpfast.prune`, `mpfast.compress` or `mpfast.narrow` wrote.

    For every pruned tensor: as many entries are masked as the budget says, those are zero, the pattern holds, and,
    where the source is at hand, the others are bitwise those of the source, whose content hash is the budget's. Where
    the kept weights were refitted, their tensor has the hash of what was written instead. Every other tensor is bitwise
    that of the source.

    For every matrix that was truncated or factored: what is stored has the hash that the mark gives and the rank, and
    is as close to the source's as its energy says, within the rounding of its type. A LoRA adapter is not checked.

    For every tensor that has become smaller: what is stored has the hash that the mark gives, the configuration says
    the sizes and, where the source is at hand, the rows that are left of what writes neurons or heads are the source's.

    The source is known by the hashes of its tensors, not by its name: one
    that was moved verifies, one that was edited does not.

    Parameters
    ----------
    out : path
        The directory.
    source : path, mapping of arrays or module, optional
        The dense checkpoint, of any format that is read; default where the output says it was, if it still is there.

    Returns
    -------
    Verification

    Raises
    ------
    FileNotFoundError
        The directory, its budget or its masks are missing, or `source` is.
    ValueError
        The directory holds a LoRA adapter, or what `mpfast.quantize` wrote.
    CheckpointError
        A file is malformed.
    TypeError
        `source` is nothing that holds tensors.
    """
    directory = Path(check_path(out, "out"))
    restore_directory(directory)
    mark = read_mark(directory)
    if mark is not None and mark.get("command") in ("compress", "resize"):
        return _verify_compressed(directory, mark, source)
    if mark is not None and mark.get("command") == "quantize":
        raise InvalidValueError("out", "holds integers that quantize() wrote, which is not checked", "see mpfast.diff")
    if mark is not None and mark.get("command") == "narrow":
        return _verify_narrowed(directory, mark, source)
    for file in (BUDGET_FILE, MASKS_FILE):
        if not (directory / file).is_file():
            raise FileNotFoundError(
                f"{directory / file}: no such file; is this a directory that prune(), compress() or narrow() wrote?"
            )
    try:
        budget = Budget.from_json(directory / BUDGET_FILE)
    except InputError as error:
        raise CheckpointError(f"{directory / BUDGET_FILE}: {error.message}") from None
    tensors = _opened(directory, source, budget.source, "pruned")
    return _Comparison(budget, MaskFile(directory / MASKS_FILE), tensors).run()


def _opened(directory: Path, source: Any, noted: Any, done: str) -> WrittenTensors:
    """Open an output and its source: the one given or, if it still is there, the one that the output notes."""
    if source is None and isinstance(noted, str) and _exists(noted):
        source = noted
    with argument_called("source"):
        dense = None if source is None else open_checkpoint(source)
        record = SourceRecord.of(directory)
        if record is not None and record.dequantized and isinstance(dense, Dequantised):
            dense = dense_copy(dense, record.dequantized)
    return WrittenTensors(open_checkpoint(directory), dense, record, done)


def _verify_compressed(directory: Path, mark: Mapping[str, Any], source: Any) -> Verification:
    if mark.get("format") == "lora":
        raise InvalidValueError(
            "out",
            "is a LoRA adapter, which is not checked",
            "merge it into its base and compare by mpfast.diff",
        )
    noted, written = mark.get("source"), mark.get("written")
    try:
        layers = layers_of(mark)
    except ValueError as error:
        raise CheckpointError(f"{directory / MARK_FILE}: {error}") from None
    if mark.get("format") not in ("dense", "factors") or not isinstance(written, dict):
        raise CheckpointError(f"{directory / MARK_FILE}: does not say what was written")
    tensors = _opened(directory, source, noted.get("path") if isinstance(noted, dict) else None, "factored")
    problems, untouched, missed = CompressedOutput(tensors, str(mark["format"]), layers, written).run()
    return Verification(
        tuple(problems),
        len(layers),
        untouched,
        None if tensors.dense is None else tensors.dense.source,
        tuple(missed),
        None if tensors.record is None else tensors.record.hash,
        "compress",
    )


def _verify_narrowed(directory: Path, mark: Mapping[str, Any], source: Any) -> Verification:
    noted = mark.get("source")
    try:
        said = NarrowMark.of(mark)
    except ValueError as error:
        raise CheckpointError(f"{directory / MARK_FILE}: {error}") from None
    tensors = _opened(directory, source, noted.get("path") if isinstance(noted, dict) else None, "narrowed")
    problems, untouched, missed = NarrowedOutput(tensors, said).run()
    return Verification(
        tuple(problems),
        len(said.kept),
        untouched,
        None if tensors.dense is None else tensors.dense.source,
        tuple(missed),
        None if tensors.record is None else tensors.record.hash,
        "narrow",
    )


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
    tensors: WrittenTensors

    def __post_init__(self) -> None:
        self.pruned, self.dense, self.record = self.tensors.written, self.tensors.dense, self.tensors.record
        self._pruned_contents: set[Contents] = set()

    def run(self) -> Verification:
        budgeted = {row.file_name for row in self.budget}
        others = [info.name for info in self.pruned.tensors if info.name not in budgeted]
        untouched, unknown, changed = self.tensors.look_at(others)
        masked = self._mask_problems(changed)
        # Another name of the memory of a pruned tensor: it was the same, and still is.
        differing = [(name, found) for name, found in changed.items() if found not in self._pruned_contents]
        problems = [
            *_name_problems(self.budget, self.masks, self.pruned, self.dense),
            *masked,
            *(self.tensors.difference(name, found) for name, found in differing),
        ]
        return Verification(
            tuple(problems),
            len(self.budget),
            untouched,
            None if self.dense is None else self.dense.source,
            tuple(self._not_compared(unknown)),
            None if self.record is None else self.record.hash,
        )

    def _not_compared(self, unknown: Sequence[str]) -> list[str]:
        found = []
        if self.dense is None:
            kept = sum(row.size - row.pruned for row in self.budget if not row.updated)
            if kept:
                found.append(f"the {kept:,} entries that the masks keep: the dense model is not at hand")
            if unknown:
                found.append(f"{some(unknown)}: the dense model is not at hand")
        elif unknown:
            found.append(f"{some(unknown)}: the dense model has no such tensor, or of another type or shape")
        if self.dense is not None:
            lost = [name for name in self.tensors.its if name not in self.tensors.mine]
            if lost:
                found.append(f"{some(lost)}: in the dense model only")
        if home_directory(self.pruned) is not None:
            found.append("files beside the weights (configuration, tokenizer)")
        return found

    def _mask_problems(self, changed: Mapping[str, Contents]) -> list[str]:
        """Go through the pruned tensors that are there in the shape that the budget says.

        What those were and are that may be the same as one of `changed` is kept in `_pruned_contents`.
        """
        kinds = {(found.shape, found.dtype) for found in changed.values()}
        both = [self.pruned] if self.dense is None else [self.pruned, self.dense]
        # A tensor that is in one of the two only is among the problems already.
        common = set.intersection(*({key_of(info) for info in checkpoint.tensors} for checkpoint in both))
        shapes = {name: shape for name, shape, _ in common}
        rows = {row.file_name: row for row in self.budget}
        masked = [name for name, row in rows.items() if name in self.masks and shapes.get(name) == row.shape]
        masked = [name for name in masked if self.masks.shape_of(name) == rows[name].shape]
        problems = []
        for name in prefetched(masked, *both):
            try:
                info = self.tensors.mine[name]
                problems += self._layer_problems(
                    rows[name], self.masks[name], may_be_shared=(info.shape, info.dtype) in kinds
                )
            finally:
                for checkpoint in both:
                    checkpoint.release(name)
        return problems

    def _layer_problems(self, row: LayerBudget, keep: NDArray[np.bool_], *, may_be_shared: bool) -> list[str]:
        problems = []
        masked = int(keep.size - np.count_nonzero(keep))
        if masked != row.pruned:
            problems.append(f"{row.name}: the mask prunes {masked} entries, the budget {row.pruned}")
        groups = None if self.budget.pattern is None else parsed_pattern(self.budget.pattern)
        if groups is not None:
            problems += _pattern_problems(row.name, along_inputs(keep, row.input_axes or ()), *groups)
        bits = bits_of(self.pruned.read(row.file_name), row.name)
        if bits.size != keep.size:
            return [*problems, f"{row.name}: has entries of a type that is not pruned"]
        bits = bits.reshape(keep.shape)
        gone = ~keep
        if np.multiply(bits, gone, dtype=bits.dtype).any():
            problems.append(f"{row.name}: {np.count_nonzero(bits[gone])} masked entries are not zero")
        if row.updated and content_hash(bits) != row.written:
            problems.append(f"{row.name}: the content hash is not that of what was written")
        before = self.tensors.recorded(row.file_name)
        if self.dense is not None:
            original = bits_of(self.dense.read(row.file_name), row.name).reshape(keep.shape)
            kept = [np.multiply(side, keep, dtype=bits.dtype) for side in (bits, original)]
            if not row.updated and not np.array_equal(*kept):
                changed = int(np.count_nonzero((bits != original) & keep))
                problems.append(f"{row.name}: {changed} entries that are kept differ from the source")
            before = content_hash(original) if may_be_shared or row.content is not None else None
            if row.content is not None and row.content != before:
                problems.append(f"{row.name}: the source is not the one that was pruned: its content hash differs")
        if may_be_shared and before is not None:
            self._pruned_contents.add(self.tensors.contents(row.file_name, before, content_hash(bits)))
        return problems


def _name_problems(budget: Budget, masks: MaskFile, pruned: Checkpoint, dense: Checkpoint | None) -> list[str]:
    """Say where checkpoint, budget, masks and source list different tensors."""
    problems = []
    budgeted = {row.file_name for row in budget}
    infos = by_name(pruned)
    for row in budget:
        name = row.file_name
        if name not in infos:
            problems.append(f"{name}: is in the budget, but not in the checkpoint")
        elif name not in masks:
            problems.append(f"{name}: is in the budget, but has no mask")
        elif not infos[name].shape == row.shape == masks.shape_of(name):
            problems.append(f"{name}: checkpoint, budget and mask differ in shape")
    problems += [f"{name}: has a mask, but is not in the budget" for name in masks if name not in budgeted]
    if dense is not None and list(map(key_of, infos.values())) != list(map(key_of, dense.tensors)):
        problems.append("names, order, shapes or types of the tensors differ from the source's")
    return problems


def _pattern_problems(name: str, keep: NDArray[np.bool_], n: int, m: int) -> list[str]:
    if keep.size % m:
        return [f"{name}: {keep.size} entries are no groups of {m}"]
    wrong = int(np.count_nonzero(np.count_nonzero(keep.reshape(-1, m), axis=1) != n))
    return [f"{name}: {wrong} groups of {m} do not keep {n}"] if wrong else []
