"""Whether what `narrow` wrote is what its mark says, and else the source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpfast.checkpoints import Checkpoint, content_hash, home_directory, stored
from mpfast.models.joints import Joint, Joints, heads_of, neurons_of
from mpfast.models.written_tensors import WrittenTensors, key_of, some
from mpfast.support import InvalidValueError, Record

__all__ = ["NarrowMark", "NarrowedOutput"]


@dataclass(frozen=True)
class NarrowMark:
    """What the mark of an output says.

    Attributes
    ----------
    kept : dict of str to (str, list of int)
        By matrix that reads, what it reads and which of these stay.
    settings : dict of str to int
        Of the configuration.
    written : dict of str to str
        Content hashes of the tensors that are smaller.
    """

    kept: dict[str, tuple[str, list[int]]]
    settings: dict[str, int]
    written: dict[str, str]

    @classmethod
    def of(cls, mark: Mapping[str, Any]) -> NarrowMark:
        """Read a mark; ValueError where it is damaged."""
        record = Record(mark, "the mark")
        kept: dict[str, tuple[str, list[int]]] = {}
        for entry in record.records("layers"):
            if (kind := entry.text("kind")) not in _FINDERS:
                raise entry.refuse("kind", " or ".join(_FINDERS))
            kept[entry.text("name")] = kind, [int(unit) for unit in entry.numbers("kept", low=0)]
        settings, written = (Record(record.get(field), f"the mark: {field}") for field in ("settings", "written"))
        return cls(kept, {name: settings.integer(name) for name in settings}, {n: written.text(n) for n in written})


_FINDERS = {"neurons": neurons_of, "heads": heads_of}


@dataclass
class NarrowedOutput:
    """Compares an output with its mark and, as far as it is there, its source.

    Attributes
    ----------
    tensors
        The output and the source.
    mark
        What the former says.
    """

    tensors: WrittenTensors
    mark: NarrowMark

    def run(self) -> tuple[list[str], int, list[str]]:
        """Return the problems, how many tensors are the source's, and what was not compared."""
        others = [name for name in self.tensors.mine if name not in self.mark.written]
        untouched, unknown, changed = self.tensors.look_at(others)
        problems = [
            *self._name_problems(),
            *self._setting_problems(),
            *self._content_problems(),
            *self._row_problems(),
            *(self.tensors.difference(name, found) for name, found in changed.items()),
        ]
        return problems, untouched, self._not_compared(unknown)

    def _name_problems(self) -> Iterator[str]:
        yield from (f"{name}: is not there" for name in self.mark.written if name not in self.tensors.mine)
        if self.tensors.dense is not None:
            smaller = self.mark.written
            mine, its = (
                [(key[0], key[2], None if key[0] in smaller else key[1]) for key in map(key_of, checkpoint.tensors)]
                for checkpoint in (self.tensors.written, self.tensors.dense)
            )
            if mine != its:
                yield "names, order, types, or shapes of what is not smaller, differ from the source's"

    def _setting_problems(self) -> Iterator[str]:
        config = getattr(self.tensors.written, "config", None) or {}
        for name, value in self.mark.settings.items():
            if config.get(name) != value:
                yield f"config.json: {name} is {config.get(name)!r}, not {value}"

    def _content_problems(self) -> Iterator[str]:
        for name, wanted in self.mark.written.items():
            if name in self.tensors.mine:
                if content_hash(_read(self.tensors.written, name)) != wanted:
                    yield f"{name}: the content hash is not that of what was written"
                self.tensors.written.release(name)

    def _row_problems(self) -> Iterator[str]:
        """Compare what writes the units that stay with the source's rows of them."""
        dense = self.tensors.dense
        if dense is None:
            return
        for kind in dict.fromkeys(kind for kind, _ in self.mark.kept.values()):
            try:
                joints = _FINDERS[kind](dense)
            except InvalidValueError as error:
                yield f"the source: {error.message}"
                continue
            for joint in joints.all:
                if self.mark.kept.get(joint.reader.file_name, ("", []))[0] != kind:
                    yield f"{joint.reader.name}: the mark does not say which of its {joints.noun} stay"
                else:
                    yield from self._writer_problems(dense, joints, joint)

    def _writer_problems(self, dense: Checkpoint, joints: Joints, joint: Joint) -> Iterator[str]:
        kept = self.mark.kept[joint.reader.file_name][1]
        if not kept or max(kept) >= joints.units:
            yield f"{joint.reader.name}: the mark keeps {joints.noun} that the source does not have"
            return
        for writer in joint.writers:
            name = writer.info.name
            if name in self.tensors.mine:
                wanted = writer.narrowed(_read(dense, name), joints.units, kept)
                if not np.array_equal(_read(self.tensors.written, name), wanted):
                    yield f"{name}: is not the source's, without the rows that the mark names"
                dense.release(name)
                self.tensors.written.release(name)

    def _not_compared(self, unknown: list[str]) -> list[str]:
        found = []
        if self.tensors.dense is None:
            found.append("the rows that are left of smaller tensors: the dense model is not at hand")
        if unknown:
            found.append(f"{some(unknown)}: there is nothing to compare with")
        if home_directory(self.tensors.written) is not None:
            found.append("files beside the weights, but for the sizes (configuration, tokenizer)")
        return found


def _read(checkpoint: Checkpoint, name: str) -> Any:
    return stored(checkpoint.read(name), name)
