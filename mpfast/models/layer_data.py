"""What is known of a layer when it is decided how much of it goes, and where in the model it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mpfast.reconstruct import Factor

if TYPE_CHECKING:
    from mpfast.models.layer_report import LayerReport

__all__ = ["LayerData", "Target", "block_of", "depths_of", "given"]

Array = NDArray[np.float64]
T = TypeVar("T")

# "encoder.layer.11" of "encoder.layer.11.output.dense.weight".
_BLOCK = re.compile(r"^(?P<stack>(?:.*?\.)?)(?P<number>\d+)(?=\.)")


@dataclass(frozen=True)
class LayerData:
    """One layer, and as much of what can be known of it as a method needs; the rest is None.

    Attributes
    ----------
    name : str
        Of the tensor.
    size : int
        Number of its entries.
    report : LayerReport or None
        Its spectrum.
    weights : (out, in) array or None
        In float32 or float64; of stored layers only while it is measured.
    factor : Factor or None
        Of the second moment of its inputs.
    gradient : (out,) array or None
        Mean squares of the gradients of the loss in its outputs, or one number.
    """

    name: str
    size: int
    report: LayerReport | None = None
    weights: NDArray[Any] | None = None
    factor: Factor | None = None
    gradient: Any = None


@dataclass(frozen=True)
class Target:
    """What is to be shared out.

    Attributes
    ----------
    sparsity : float
        Share of all entries.
    pruned : int
        The same as a number of entries.
    low, high : (layers,) array
        Smallest and largest share of each layer.
    """

    sparsity: float
    pruned: int
    low: Array
    high: Array


def given(value: T | None) -> T:
    """Return what a method has said that it needs; TypeError where its caller has not brought it."""
    if value is None:
        raise TypeError("a method was called without what it needs")
    return value


def block_of(name: str) -> str:
    """Return the block of a layer: its name up to the first part that is a number; a layer of none is one by itself."""
    found = _BLOCK.match(name)
    return name if found is None else found[0]


def depths_of(names: Sequence[str]) -> Array:
    """How deep in its stack of blocks each layer is, from -1 (the first block) to 1 (the last).

    A layer of no block, and the only block of a stack, are at 0.
    """
    places = [_BLOCK.match(name) for name in names]
    numbers: dict[str, set[int]] = {}
    for found in places:
        if found is not None:
            numbers.setdefault(found["stack"], set()).add(int(found["number"]))
    ranks: Mapping[str, dict[int, float]] = {
        stack: dict(zip(sorted(members), _positions(len(members)), strict=True)) for stack, members in numbers.items()
    }
    return np.array([0.0 if found is None else ranks[found["stack"]][int(found["number"])] for found in places])


def _positions(count: int) -> list[float]:
    return [float(at) for at in np.linspace(-1, 1, count)] if count > 1 else [0.0]
