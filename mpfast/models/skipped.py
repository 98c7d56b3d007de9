"""The tensors that a function on models left out, and why."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mpfast.checkpoints import Checkpoint, Layer

__all__ = ["LEFT_DENSE", "SkippedTensor", "is_companion", "is_non_finite", "kind_of_reason", "skipped_tensors"]

#: Why embeddings and output heads stay as they are; as the library and as the command line call what changes it.
LEFT_DENSE = "embedding or output head (not without embeddings=True, or --embeddings)"
# As `mpfast.arrays.raise_if_nonfinite` says it.
_NON_FINITE = re.compile(r"\bnon-finite\b")
# As `mpfast.checkpoints.roles.companion_of` says it.
_COMPANION = re.compile(r"scale of the quantised .*, or what else belongs to it$", re.DOTALL)


class SkippedTensor(NamedTuple):
    """A tensor that was not analysed, and why."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    reason: str


def is_non_finite(tensor: SkippedTensor) -> bool:
    """Whether a tensor was left out because of NaN or infinities in it."""
    return _NON_FINITE.search(tensor.reason) is not None


def is_companion(tensor: SkippedTensor) -> bool:
    """Whether a tensor is none of its own, but belongs to a quantised weight."""
    return _COMPANION.match(tensor.reason) is not None


def kind_of_reason(tensor: SkippedTensor) -> str:
    """The reason without the name of another tensor, so that equal ones can be told together."""
    return "scales of quantised weights, or what else belongs to them" if is_companion(tensor) else tensor.reason


def skipped_tensors(
    checkpoint: Checkpoint, layers: Iterable[Layer], reasons: Mapping[str, str]
) -> tuple[SkippedTensor, ...]:
    """List what has a reason: tensors in the order of the checkpoint, parts of tensors, and what is no tensor."""
    tensors = [(info.name, info.shape, info.dtype) for info in checkpoint.tensors]
    known = {name for name, _, _ in tensors}
    parts = [(layer.name, layer.shape, layer.dtype) for layer in layers if layer.name not in known]
    others = [SkippedTensor(other.name, (), other.type, other.reason) for other in getattr(checkpoint, "others", ())]
    found = [SkippedTensor(*entry, reasons[entry[0]]) for entry in (*tensors, *parts) if entry[0] in reasons]
    return (*found, *others)
