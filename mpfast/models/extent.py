"""How much of a layer and of a model a budget may take, and takes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

from mpfast.models.skipped import SkippedTensor, is_companion
from mpfast.support import warn_caller

__all__ = ["DEFAULT_CEILING", "default_ceiling", "dense_tensors", "model_entries", "warn_of_emptied"]

#: Largest sparsity of a layer where nothing else is asked for, and the target leaves room.
DEFAULT_CEILING = 0.9


def default_ceiling(sparsity: float) -> float:
    """Largest sparsity of a layer where none is asked for: 0.9, or half way from the target to 1 where that is more."""
    return max(DEFAULT_CEILING, (1 + sparsity) / 2)


def warn_of_emptied(rows: Iterable[tuple[str, int, int]], sparsity: float, function: str) -> None:
    """Warn of layers (name, pruned, size) of which nothing is left, unless that was asked for."""
    emptied = [name for name, pruned, size in rows if pruned == size]
    if emptied and sparsity < 1:
        others = "" if len(emptied) == 1 else f" and {len(emptied) - 1} more"
        warn_caller(function, f"nothing is left of {emptied[0]}{others}; a lower ceiling keeps part of every layer")


def dense_tensors(
    skipped: Iterable[SkippedTensor], known: Collection[str] = ()
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return names and shapes of the tensors that could be matrices and stay dense; parts of `known` ones are none."""
    return tuple(
        (tensor.name, tensor.shape)
        for tensor in skipped
        if len(tensor.shape) > 1 and not is_companion(tensor) and not _is_part_of(tensor.name, known)
    )


def model_entries(tensors: Iterable[tuple[str, tuple[int, ...], str]], skipped: Iterable[SkippedTensor]) -> int:
    """Count the floating-point entries of a checkpoint, of which some tensors are looked at and the others skipped.

    Scales of quantised weights are none of them.
    """
    shapes = {name: shape for name, shape, _ in tensors}
    for tensor in skipped:
        if "float" in tensor.dtype and not is_companion(tensor) and not _is_part_of(tensor.name, shapes):
            shapes[tensor.name] = tensor.shape
    return sum(math.prod(shape) for shape in shapes.values())


def _is_part_of(name: str, tensors: Collection[str]) -> bool:
    return name in tensors or (name.endswith("]") and name.rpartition("[")[0] in tensors)
