"""A checkpoint whose quantised weights are seen as the numbers that they stand for, decoded as they are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mpfast.arrays import Decoder, QuantisedArray
from mpfast.checkpoints.base import Checkpoint, NoTensor, Role, TensorInfo
from mpfast.checkpoints.parameter_roles import LAYERS
from mpfast.checkpoints.quantised.formats import QuantisedFormat, format_of
from mpfast.checkpoints.quantised.group import Group, NotDecodedError, groups_of
from mpfast.checkpoints.quantised.transposed import Transposed
from mpfast.checkpoints.roles import companion_of

__all__ = ["Dequantised", "QuantisedWeight", "dequantised"]


@dataclass(frozen=True)
class QuantisedWeight:
    """A quantised weight that is read.

    Attributes
    ----------
    group : Group
        What is stored of it.
    format : QuantisedFormat
        How.
    decoder : Decoder
        What its numbers come out by.
    """

    group: Group
    format: QuantisedFormat
    decoder: Decoder

    @property
    def info(self) -> TensorInfo:
        """The weight as a tensor."""
        codes, decoder = self.group.info, self.decoder
        # What a live module says of its weight is true of the numbers, too.
        of_module = codes.known is not None and codes.known.kind in LAYERS
        known = codes.known if of_module else self.format.role(self.group, decoder.shape)
        return TensorInfo(self.group.name, decoder.shape, decoder.dtype, known, stored=decoder.stored)

    def dense(self) -> tuple[Decoder, Role | None]:
        """Return the numbers as the model without quantisation stores them, and what they are to it."""
        if self.format.transposed(self.group):
            return Transposed(self.decoder), None
        return self.decoder, self.info.known


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
    weights : dict of str to QuantisedWeight
        Those that are read, by name.
    refused : dict of str to str
        Why others are not, by the name of their codes.
    """

    def __init__(self, stored: Checkpoint, groups: Iterable[Group]) -> None:
        self.stored = stored
        self.weights: dict[str, QuantisedWeight] = {}
        self.refused: dict[str, str] = {}
        self._names = {info.name for info in stored.tensors}
        seen: dict[str, TensorInfo] = {}
        for group in groups:
            codes, name = group.info, group.name
            try:
                weight = self._decoded(group, name)
            except NotDecodedError as error:
                self.refused[codes.name] = str(error)
                reason = f"quantised{f' ({group.method})' if group.method else ''}: {error}; dequantise it first"
                source = group.source if group.method else "companions"
                seen[codes.name] = replace(codes, known=Role("quantised", reason=reason, source=source))
            else:
                self.weights[name] = weight
                seen[codes.name] = weight.info
            companion = companion_of(seen[codes.name].name)
            for part in group.parts.values():
                if part.name not in seen:
                    seen[part.name] = replace(part, known=companion)
        self._tensors = tuple(seen.get(info.name, info) for info in stored.tensors)

    def _decoded(self, group: Group, name: str) -> QuantisedWeight:
        if name in self.weights or (name in self._names and name != group.info.name):
            raise NotDecodedError(f"there is another tensor called {name}")
        format = format_of(group)
        return QuantisedWeight(group, format, format.decoder(group))

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
        if name in self.weights:
            return QuantisedArray(self.weights[name].decoder)
        return self.stored.read(name)

    def holder_of(self, name: str) -> Checkpoint:
        """Return what has the bits of a tensor: this for a weight that is decoded, else what is stored, of any type."""
        return self if name in self.weights else self.stored

    def prefetch(self, name: str) -> None:
        """Begin to read a tensor, with all that belongs to it."""
        for part in self._parts(name):
            self.stored.prefetch(part)

    def release(self, name: str) -> None:
        """Give the memory of a tensor back, and of all that belongs to it."""
        for part in self._parts(name):
            self.stored.release(part)

    def _parts(self, name: str) -> list[str]:
        if name not in self.weights:
            return [name]
        return [info.name for info in self.weights[name].group.parts.values()]


def dequantised(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint whose quantised weights are seen as numbers; the given one where it has none."""
    groups = list(groups_of(checkpoint))
    return Dequantised(checkpoint, groups) if groups else checkpoint
