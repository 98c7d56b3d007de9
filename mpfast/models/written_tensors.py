"""Tensors of an output beside those of its source: which are the same, bit by bit, each read once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.checkpoints import Checkpoint, TensorInfo, prefetched, shards_of, stored, stored_bits
from mpfast.models.output_mark import SourceRecord

__all__ = ["Contents", "WrittenTensors", "bits_of", "by_name", "key_of", "some"]


@dataclass(frozen=True)
class Contents:
    """A tensor of the output by its hashes: of what it was in the source, and of what it is.

    Attributes
    ----------
    shape, dtype
        Of both.
    before, now
        The hashes.
    """

    shape: tuple[int, ...]
    dtype: str
    before: str
    now: str


@dataclass
class WrittenTensors:
    """An output and, as far as they are there, its source and what its mark says of that.

    Attributes
    ----------
    written, dense
        The output and its source.
    record
        Of the mark.
    done
        What the command did to the other tensors, "pruned", "factored" or "narrowed".
    """

    written: Checkpoint
    dense: Checkpoint | None
    record: SourceRecord | None
    done: str

    def __post_init__(self) -> None:
        self.mine = by_name(self.written)
        self.its = {} if self.dense is None else by_name(self.dense)

    def look_at(self, others: Sequence[str]) -> tuple[int, list[str], dict[str, Contents]]:
        """Compare the tensors that are left alone with the source's, each read once.

        Returns
        -------
        untouched
            How many are the source's.
        unknown
            Those of which there is nothing to tell by.
        changed
            Those that are not the source's.
        """
        untouched, unknown, changed = 0, [], {}
        both = [self.written]
        if self.dense is not None and all(name in self.its for name in others):
            both.append(self.dense)
        for name in prefetched(others, *both):
            if not self._is_comparable(name):
                unknown.append(name)
                continue
            found = self._contents_if_changed(name)
            if found is None:
                untouched += 1
            else:
                changed[name] = found
        return untouched, unknown, changed

    def _is_comparable(self, name: str) -> bool:
        if self.dense is None:
            return self.recorded(name) is not None
        info = self.its.get(name)  # a difference of type or shape is among the problems already
        return info is not None and key_of(info) == key_of(self.mine[name])

    def _contents_if_changed(self, name: str) -> Contents | None:
        """Return what a tensor was and is; None where that is the same."""
        now = stored_bits(self.written, name)
        try:
            if self.dense is None:
                before, after = self.recorded(name), _hash(now)
                assert before is not None, "_is_comparable looks for it"
                return None if before == after else self.contents(name, before, after)
            was = self._dense_bits(name)
            try:
                if np.array_equal(np.frombuffer(now, np.uint8), np.frombuffer(was, np.uint8)):
                    return None
                return self.contents(name, _hash(was), _hash(now))
            finally:
                self.dense.release(name)
        finally:
            self.written.release(name)

    def contents(self, name: str, before: str, now: str) -> Contents:
        """Return what a tensor was and is, by these hashes."""
        info = self.mine[name]
        return Contents(info.shape, info.dtype, before, now)

    def recorded(self, name: str) -> str | None:
        """Return the hash of a tensor of the source that the mark gives, if it does."""
        return None if self.record is None else self.record.tensors.get(name)

    def _dense_bits(self, name: str) -> memoryview:
        assert self.dense is not None
        if shards_of(self.dense):  # also types that are not read
            return stored_bits(self.dense, name)
        return bits_of(self.dense.read(name), name).view(np.uint8).data

    def difference(self, name: str, found: Contents) -> str:
        """Say which of the two is not what it was, as far as the output's mark tells."""
        if self.dense is None:
            return f"{name}: is not {self.done}, but its content hash is not that of the source"
        if self.recorded(name) == found.now:
            wrong = f"the source is not the one that was {self.done}"
            return f"{name}: {wrong}: this tensor, which is not {self.done}, differs"
        return f"{name}: is not {self.done}, but differs from the source"


def _hash(content: memoryview) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def some(names: Sequence[str]) -> str:
    """Name the one tensor, or the first of several with their number."""
    return names[0] if len(names) == 1 else f"{len(names)} tensors ({names[0]}, ...)"


def key_of(info: TensorInfo) -> tuple[str, tuple[int, ...], str]:
    """Return what two tensors that can be compared have in common."""
    return info.name, info.shape, info.dtype


def by_name(checkpoint: Checkpoint) -> dict[str, TensorInfo]:
    """Return the tensors of a checkpoint by their names."""
    return {info.name: info for info in checkpoint.tensors}


def bits_of(tensor: Any, name: str) -> NDArray[Any]:
    """Return the entries as integers of their size, in the machine's byte order: equality of bits, NaN included."""
    contiguous = np.ascontiguousarray(stored(tensor, name))
    kind = f"u{contiguous.itemsize}" if contiguous.itemsize in (1, 2, 4, 8) else "u1"
    return contiguous.reshape(-1).view(kind)
