"""A checkpoint whose quantised weights are seen as the numbers that they stand for, decoded as they are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from mpfast.arrays import Decoder, QuantisedArray
from mpfast.checkpoints.base import Checkpoint, NoTensor, Role, TensorInfo
from mpfast.checkpoints.quantised.formats import format_of
from mpfast.checkpoints.quantised.group import Group, NotDecodedError, groups_of
from mpfast.checkpoints.roles import LAYERS, companion_of

__all__ = ["Dequantised", "dequantised"]


class Dequantised:
    """A checkpoint with quantised weights, each under the name, in the shape and with the numbers of the weight itself.

    The weight stands in the place of its codes; its scales and the like keep their names, as companions. What is in a
    format that is not read, or lacks a part, stays as it is stored, with the reason in its role.

    Parameters
    ----------
    stored : Checkpoint
        As it is stored.
    groups : iterable of Group
        Its quantised weights, see `groups_of`.

    Attributes
    ----------
    stored : Checkpoint
        As it is stored.
    """

    def __init__(self, stored: Checkpoint, groups: Iterable[Group]) -> None:
        self.stored = stored
        self._groups: dict[str, tuple[Group, Decoder]] = {}
        self._names = {info.name for info in stored.tensors}
        seen: dict[str, TensorInfo] = {}
        for group in groups:
            codes = group.info
            try:
                decoder, role = self._decoder(group)
            except NotDecodedError as error:
                reason = f"quantised{f' ({group.method})' if group.method else ''}: {error}; dequantise it first"
                source = "config.json" if group.method else "companions"
                seen[codes.name] = replace(codes, known=Role("quantised", reason=reason, source=source))
            else:
                self._groups[group.name] = (group, decoder)
                # What a live module says of its weight is true of the numbers, too.
                known = codes.known if codes.known is not None and codes.known.kind in LAYERS else role
                seen[codes.name] = TensorInfo(group.name, decoder.shape, decoder.dtype, known, stored=decoder.stored)
            weight = seen[codes.name].name
            for part in group.parts.values():
                if part.name not in seen:
                    seen[part.name] = replace(part, known=companion_of(weight))
        self._tensors = tuple(seen.get(info.name, info) for info in stored.tensors)

    def _decoder(self, group: Group) -> tuple[Decoder, Role | None]:
        if group.name in self._groups or (group.name in self._names and group.name != group.info.name):
            raise NotDecodedError(f"there is another tensor called {group.name}")
        format = format_of(group)
        decoder = format.decoder(group)
        return decoder, format.role(group, decoder.shape)

    @property
    def source(self) -> str:
        """As of what is stored."""
        return self.stored.source

    @property
    def config(self) -> Mapping[str, Any] | None:
        """As of what is stored."""
        return getattr(self.stored, "config", None)

    @property
    def others(self) -> tuple[NoTensor, ...]:
        """As of what is stored."""
        return getattr(self.stored, "others", ())

    @property
    def shards(self) -> list[Checkpoint]:
        """What the tensors come from."""
        return [self.stored]

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """All tensors in the order of the checkpoint."""
        return self._tensors

    def read(self, name: str) -> Any:
        """Return one tensor: of a quantised weight a `QuantisedArray`, of any other what is stored."""
        if name in self._groups:
            return QuantisedArray(self._groups[name][1])
        return self.stored.read(name)

    def prefetch(self, name: str) -> None:
        """Begin to read a tensor, with all that belongs to it."""
        for part in self._parts(name):
            self.stored.prefetch(part)

    def release(self, name: str) -> None:
        """Give the memory of a tensor back, and of all that belongs to it."""
        for part in self._parts(name):
            self.stored.release(part)

    def _parts(self, name: str) -> list[str]:
        if name not in self._groups:
            return [name]
        return [info.name for info in self._groups[name][0].parts.values()]


def dequantised(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint whose quantised weights are seen as numbers; the given one where it has none."""
    groups = list(groups_of(checkpoint))
    return Dequantised(checkpoint, groups) if groups else checkpoint
