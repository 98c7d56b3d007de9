"""How a tensor is seen as matrices: whole, by the parts of a fused projection, by experts, by positions of a kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from mpfast.checkpoints.base import Role
from mpfast.support import InvalidValueError, front_door

__all__ = ["MIN_SIDE", "SPLIT", "WHOLE", "ConvView", "ExpertsView", "MatrixPart", "QkvView", "Views", "matrices_of"]

ConvView = Literal["im2col", "positions"]
QkvView = Literal["split", "fused"]
ExpertsView = Literal["split", "stack"]

#: Fewer singular values than this cannot be told from any law: the fit's central window would be empty.
MIN_SIDE = 8


@dataclass(frozen=True, slots=True)
class Views:
    """How tensors are seen as matrices.

    Attributes
    ----------
    conv : {"im2col", "positions"}
        A convolution (Co, Ci, kh, kw) is one Co x (Ci kh kw) matrix, or kh kw matrices Co x Ci.
    qkv : {"split", "fused"}
        A fused projection (query, key and value; gate and up; the gates of a recurrent layer) is its parts, or whole.
    experts : {"split", "stack"}
        A stack (E, a, b) is E matrices a x b, or one E a x b.
    """

    conv: ConvView = "im2col"
    qkv: QkvView = "split"
    experts: ExpertsView = "split"

    @front_door
    def __post_init__(self) -> None:
        for name, words in (("conv", ConvView), ("qkv", QkvView), ("experts", ExpertsView)):
            choices = get_args(words)
            if getattr(self, name) not in choices:
                raise InvalidValueError(name, f"must be one of {', '.join(choices)}, not {getattr(self, name)!r}")


#: Fused projections and stacks in their parts, convolutions whole.
SPLIT = Views()
#: One matrix per tensor.
WHOLE = Views(qkv="fused", experts="stack")


@dataclass(frozen=True)
class MatrixPart:
    """A matrix of a tensor.

    Attributes
    ----------
    label : str
        What stands in brackets behind the tensor's name; empty where it is all of the tensor.
    shape : (int, int)
        Of the matrix.
    index, folded : tuple
        As in `Layer`.
    """

    label: str
    shape: tuple[int, int]
    index: tuple[int | slice, ...] = ()
    folded: tuple[int, ...] = ()


def matrices_of(shape: tuple[int, ...], role: Role, views: Views) -> list[MatrixPart]:
    """Return the matrices of a tensor of two or more dimensions that has this role, as `views` ask for them."""
    convolution = role.kind in ("conv", "conv_transposed")
    if role.stacked:
        if views.experts == "stack":
            return [MatrixPart("", (shape[0], shape[1]))]
        rows = shape[0] // role.stacked
        return [MatrixPart(str(e), (rows, shape[1]), (slice(e * rows, (e + 1) * rows),)) for e in range(role.stacked)]
    if role.kind == "experts":
        if views.experts == "stack":
            return [MatrixPart("", (shape[0] * shape[1], shape[2]))]
        split = _fused(shape[1:], role, 1) if views.qkv == "split" else []
        if not split or min(min(part.shape) for part in split) < MIN_SIDE:
            split = [MatrixPart("", (shape[1], shape[2]))]
        return [_of_expert(part, e, shape[0]) for e in range(shape[0]) for part in split]
    if convolution and views.conv == "positions":
        return _positions(shape, channels_last=role.rows > 1)
    if len(shape) == 2 and role.parts and views.qkv == "split":
        return _fused(shape, role, 0)
    return [MatrixPart("", (math.prod(shape[: role.rows]), math.prod(shape[role.rows :])))]


def _of_expert(part: MatrixPart, number: int, count: int) -> MatrixPart:
    """A part of each of the matrices of a stack, in one of them."""
    label = f"{number},{part.label}" if part.label else str(number)
    return MatrixPart(label, part.shape, (number, *part.index), (count, *part.folded) if part.folded else ())


def _fused(shape: tuple[int, ...], role: Role, before: int) -> list[MatrixPart]:
    """Parts along the outputs of a matrix, which `before` axes of the tensor come before."""
    if not role.parts or not role.input_axes:
        return []
    outputs = 1 - (role.input_axes[0] - before)
    found = []
    for part in role.parts:
        sides = (part.outputs, shape[1]) if outputs == 0 else (shape[0], part.outputs)
        ahead = (slice(None),) * outputs
        if part.runs == 1:
            found.append(MatrixPart(part.label, sides, (*ahead, slice(part.start, part.start + part.length))))
        elif part.length == 1:
            stop = part.start + (part.runs - 1) * part.stride + 1
            found.append(MatrixPart(part.label, sides, (*ahead, slice(part.start, stop, part.stride))))
        else:
            folded = (*shape[:outputs], part.runs, part.stride, *shape[outputs + 1 :])
            run = slice(part.start, part.start + part.length)
            found.append(MatrixPart(part.label, sides, (*ahead, slice(None), run), folded))
    return found


def _positions(shape: tuple[int, ...], channels_last: bool) -> list[MatrixPart]:
    """One matrix for every position of the kernel."""
    window = shape[:-2] if channels_last else shape[2:]
    sides = shape[-2:] if channels_last else shape[:2]
    both = (slice(None), slice(None))
    return [
        MatrixPart(",".join(map(str, at)), (sides[0], sides[1]), at if channels_last else (*both, *at))
        for at in np.ndindex(*window)
    ]
