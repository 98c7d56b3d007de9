"""torchao in safetensors: ``M._weight_qdata`` with scales and zero points, described in the header of the file.

The header holds a JSON text for every weight: the class of the tensor, and over what block of it a scale goes. Classes
with a code for every entry are read, ``W = (code - zero) * scale``; four bits where two lie in a byte in their order,
``W = code * scale + zero``; and the MX and NVFP4 formats. Others are packed for one machine or another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import Decoder
from mpfast.checkpoints.quantised.affine import Affine
from mpfast.checkpoints.quantised.affine_parts import ScalesAcross, StoredIntegers, check_floats, check_type
from mpfast.checkpoints.quantised.blocks import Grid
from mpfast.checkpoints.quantised.codes import FLOAT8
from mpfast.checkpoints.quantised.group import Group, NotDecodedError, check_shape
from mpfast.checkpoints.quantised.parts import BlockScales, StoredCodes
from mpfast.checkpoints.quantised.scaled_codes import ScaledCodes
from mpfast.checkpoints.quantised.tensor_core import block_scaled
from mpfast.support import parse_json, short

__all__ = ["METHODS", "decoder", "is_torchao"]

#: What configurations call the method that stores weights so.
METHODS = frozenset({"torchao"})
_CODES, _SCALE, _ZERO = "weight_qdata", "weight_scale", "weight_zero_point"
_LAST, _OF_INPUTS = "weight_per_tensor_scale", "weight_act_per_tensor_scale"


def is_torchao(group: Group) -> bool:
    """Whether the codes have the name that torchao gives them."""
    return group.codes == _CODES


def decoder(group: Group) -> Decoder:
    """Return the decoder; NotDecodedError where the header does not describe it, or a part is missing or misfits."""
    kind, data = _described(group)
    if kind not in _CLASSES:
        raise NotDecodedError(f"is a {short(kind)} of torchao, where {', '.join(_CLASSES)} are read")
    shape = group.info.shape
    if len(shape) not in (2, 3) or 0 in shape:
        raise NotDecodedError(f"has the shape {shape}, where 2 or 3 dimensions are expected")
    return _CLASSES[kind](group, data)


def _float8(group: Group, data: Mapping[str, Any]) -> Decoder:
    group.only(_CODES, _SCALE)
    shape, dtype = group.info.shape, check_type(group, _CODES, *FLOAT8).dtype
    block, grid = _grid(group, data, shape)
    codes, scales = StoredCodes(group, _CODES, shape), BlockScales(group, _SCALE, grid)
    return ScaledCodes(shape, _label("fp8", block, shape), "float32", dtype, codes, scales)


def _integers(group: Group, data: Mapping[str, Any], *, symmetric: bool) -> Decoder:
    """Return the decoder of a code in a byte for every entry; where it is symmetric, there may be no zero points."""
    group.only(_CODES, _SCALE, _ZERO)
    shape = check_type(group, _CODES, "int8").shape
    block, grid = _grid(group, data, shape)
    zeros: BlockScales | float = 0.0
    if group.has(_ZERO):
        check_type(group, _ZERO, "int8", "float32", "float16", "bfloat16")
        check_shape(group, _ZERO, group.parts[_SCALE].shape)
        zeros = BlockScales(group, _ZERO, grid)
    elif not symmetric:
        raise NotDecodedError(f"has no {_ZERO}, and is never cast without one")
    scales = BlockScales(group, _SCALE, grid)
    return Affine(shape, _label(_bits(data), block, shape), StoredIntegers(group, _CODES), scales, zeros)


def _four_bits(group: Group, data: Mapping[str, Any]) -> Decoder:
    """Return the decoder of (..., N, K / 2) bytes, with scales and what is added in (..., K / g, N).

    What is added is the value of code 0, not a code. One more part, which inputs are multiplied by, would be a factor.
    """
    group.only(_CODES, _SCALE, _ZERO)
    stored = check_type(group, _CODES, "int8", "uint8").shape
    shape = (*stored[:-1], 2 * stored[-1])
    block = _block(data, shape)
    if set(block[:-1]) != {1}:
        raise NotDecodedError(f"has blocks of {list(block)} in the header, where groups of inputs are expected")
    across = (*shape[:-2], shape[-1] // block[-1], shape[-2])
    for word in (_SCALE, _ZERO):
        check_floats(group, word, across)
    scales, added = (ScalesAcross(group, word, block[-1]) for word in (_SCALE, _ZERO))
    return Affine(shape, _label("int4", block, shape), _Nibbles(group, _CODES), scales, biases=added)


def _mx(group: Group, data: Mapping[str, Any]) -> Decoder:
    group.only(_CODES, _SCALE)
    said = _type_named(data, "elem_dtype")
    if group.info.dtype != {"float4_e2m1fn_x2": "uint8"}.get(said, said):
        raise NotDecodedError(f"is {group.info.dtype}, where the header says {short(said)}")
    return block_scaled(group, _SCALE, _width(data), powers=True, tiled=_is_tiled(data))


def _nvfp4(group: Group, data: Mapping[str, Any]) -> Decoder:
    group.only(_CODES, _SCALE, _LAST, _OF_INPUTS)
    check_type(group, _CODES, "uint8")
    # A last scale that is only missing from the files is in the list of the header.
    last = _LAST if group.has(_LAST) or _LAST in _parts_said(group) else ""
    return block_scaled(group, _SCALE, _width(data), powers=False, tiled=_is_tiled(data), last=last)


_CLASSES: Mapping[str, Callable[[Group, Mapping[str, Any]], Decoder]] = {
    "Float8Tensor": _float8,
    "Int8Tensor": partial(_integers, symmetric=True),
    "IntxUnpackedToInt8Tensor": partial(_integers, symmetric=False),
    "Int4Tensor": _four_bits,
    "MXTensor": _mx,
    "NVFP4Tensor": _nvfp4,
}


@dataclass(frozen=True)
class _Nibbles:
    """Integers of four bits with their sign, two in a byte, the first in the low nibble."""

    group: Group
    word: str

    def read(self, matrix: int, rows: slice) -> NDArray[np.int8]:
        """Return those of some rows."""
        held = self.group.read(self.word).view(np.int8)
        chosen = held.reshape(-1, *held.shape[-2:])[matrix, rows]
        return np.stack([chosen << 4 >> 4, chosen >> 4], axis=-1).reshape(len(chosen), -1)


def _grid(group: Group, data: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[tuple[int, ...], Grid]:
    """The block that a scale goes over, by the header, and the grid of the scales."""
    block = _block(data, shape)
    blocks = tuple(side // part for side, part in zip(shape, block, strict=True))
    check_floats(group, _SCALE, blocks)
    return block, Grid((blocks[0] if len(shape) == 3 else 1, blocks[-2], blocks[-1]), (block[-2], block[-1]), "")


def _described(group: Group) -> tuple[str, Mapping[str, Any]]:
    """The class of the tensor, and its attributes, as the header of the file gives them."""
    found = _header(group)
    kind, data = found.get("_type"), found.get("_data")
    if not isinstance(kind, str) or not isinstance(data, Mapping):
        raise NotDecodedError("is described in the header by no class with attributes")
    return kind, data


def _parts_said(group: Group) -> list[str]:
    """The parts that the header lists."""
    said = _header(group).get("_tensor_data_names")
    if not isinstance(said, list) or not all(isinstance(name, str) for name in said):
        raise NotDecodedError("is described in the header without a list of its parts")
    return [f"weight_{name}" for name in said]


def _header(group: Group) -> Mapping[str, Any]:
    text = group.metadata.get(group.name)
    if text is None:
        raise NotDecodedError("is described in no header, without which it is never cast")
    try:
        found = parse_json(text)
    except ValueError as error:
        raise NotDecodedError(f"is described in the header by no valid JSON: {error}") from None
    return found if isinstance(found, Mapping) else {}


def _block(data: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Over how many entries of each axis a scale goes; each axis is a whole number of blocks."""
    said = data.get("block_size")
    if not isinstance(said, list) or len(said) != len(shape) or not all(type(side) is int for side in said):
        raise NotDecodedError(f"has blocks of {short(said)} in the header, where {len(shape)} numbers are expected")
    if any(part < 1 or side % part for side, part in zip(shape, said, strict=True)):
        raise NotDecodedError(f"has blocks of {short(said)} in the header, which {shape} does not consist of")
    # A block of several matrices is of all of them.
    if len(shape) == 3 and said[0] not in (1, shape[0]):
        raise NotDecodedError(f"has blocks of {said[0]} matrices of {shape[0]}")
    return tuple(said)


def _width(data: Mapping[str, Any]) -> int:
    """How many numbers of a row have a scale."""
    said = data.get("block_size")
    if type(said) is not int or said < 1:
        raise NotDecodedError(f"has blocks of {short(said)} in the header, where a number is expected")
    return said


def _is_tiled(data: Mapping[str, Any]) -> bool:
    said = data.get("is_swizzled_scales")
    if type(said) is not bool:
        raise NotDecodedError(f"has is_swizzled_scales = {short(said)} in the header, where true or false is expected")
    return said


def _type_named(data: Mapping[str, Any], key: str) -> str:
    said = data.get(key)
    name = said.get("_data") if isinstance(said, Mapping) else None
    return name if isinstance(name, str) else ""


def _bits(data: Mapping[str, Any]) -> str:
    """The type of the codes, which may be narrower than what they are stored in."""
    name = _type_named(data, "target_dtype")
    return name if name in {f"int{bits}" for bits in range(1, 9)} else "int8"


def _label(kind: str, block: tuple[int, ...], shape: tuple[int, ...]) -> str:
    height, width = block[-2:]
    if (height, width) == shape[-2:]:
        return kind
    if height > 1:
        return f"{kind} {height}x{width}"
    return f"{kind} by row" if width == shape[-1] else f"{kind} g{width}"
