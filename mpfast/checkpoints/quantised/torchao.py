"""torchao in safetensors: ``M._weight_qdata`` with scales and zero points, described in the header of the file.

The header holds a JSON text for every weight: the class of the tensor, and over what block of it a scale goes. Classes
with a code for every entry are read, ``W = (code - zero) * scale``; the others are packed for one machine or another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpfast.arrays import Decoder
from mpfast.checkpoints.quantised.affine import Affine
from mpfast.checkpoints.quantised.affine_parts import StoredIntegers, check_floats, check_type
from mpfast.checkpoints.quantised.blocks import Grid
from mpfast.checkpoints.quantised.codes import FLOAT8
from mpfast.checkpoints.quantised.group import Group, NotDecodedError, check_shape
from mpfast.checkpoints.quantised.parts import BlockScales, StoredCodes
from mpfast.checkpoints.quantised.scaled_codes import ScaledCodes
from mpfast.support import parse_json, short

__all__ = ["METHODS", "decoder", "is_torchao"]

#: What configurations call the method that stores weights so.
METHODS = frozenset({"torchao"})
_CODES, _SCALE, _ZERO = "weight_qdata", "weight_scale", "weight_zero_point"
_FLOATING, _INTEGERS = "Float8Tensor", ("Int8Tensor", "IntxUnpackedToInt8Tensor")


def is_torchao(group: Group) -> bool:
    """Whether the codes have the name that torchao gives them."""
    return group.codes == _CODES


def decoder(group: Group) -> Decoder:
    """Return the decoder; NotDecodedError where the header does not describe it, or a part is missing or misfits."""
    kind, data = _described(group)
    if kind not in (_FLOATING, *_INTEGERS):
        read = " or ".join((_FLOATING, *_INTEGERS))
        raise NotDecodedError(f"is a {short(kind)} of torchao, where {read} is read")
    shape = group.info.shape
    if len(shape) not in (2, 3) or 0 in shape:
        raise NotDecodedError(f"has the shape {shape}, where 2 or 3 dimensions are expected")
    block = _block(data, shape)
    blocks = tuple(side // part for side, part in zip(shape, block, strict=True))
    check_floats(group, _SCALE, blocks)
    grid = Grid((blocks[0] if len(shape) == 3 else 1, blocks[-2], blocks[-1]), (block[-2], block[-1]), "")
    scales = BlockScales(group, _SCALE, grid)
    if kind == _FLOATING:
        group.only(_CODES, _SCALE)
        check_type(group, _CODES, *FLOAT8)
        codes = StoredCodes(group, _CODES, shape)
        return ScaledCodes(shape, _label("fp8", block, shape), "float32", group.info.dtype, codes, scales)
    group.only(_CODES, _SCALE, _ZERO)
    check_type(group, _CODES, "int8")
    zeros: BlockScales | float = 0.0
    if group.has(_ZERO):
        check_type(group, _ZERO, "int8", "float32", "float16", "bfloat16")
        check_shape(group, _ZERO, blocks)
        zeros = BlockScales(group, _ZERO, grid)
    elif kind != "Int8Tensor":
        raise NotDecodedError(f"has no {_ZERO}, and is never cast without one")
    return Affine(shape, _label(_bits(data), block, shape), StoredIntegers(group, _CODES), scales, zeros)


def _described(group: Group) -> tuple[str, Mapping[str, Any]]:
    """The class of the tensor, and its attributes, as the header of the file gives them."""
    text = group.metadata.get(group.name)
    if text is None:
        raise NotDecodedError("is described in no header, without which it is never cast")
    try:
        found = parse_json(text)
    except ValueError as error:
        raise NotDecodedError(f"is described in the header by no valid JSON: {error}") from None
    kind, data = (found.get("_type"), found.get("_data")) if isinstance(found, Mapping) else (None, None)
    if not isinstance(kind, str) or not isinstance(data, Mapping):
        raise NotDecodedError("is described in the header by no class with attributes")
    return kind, data


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


def _bits(data: Mapping[str, Any]) -> str:
    """The type of the codes, which may be narrower than what they are stored in."""
    said = data.get("target_dtype")
    name = said.get("_data") if isinstance(said, Mapping) else None
    return name if isinstance(name, str) and name in {f"int{bits}" for bits in range(1, 9)} else "int8"


def _label(kind: str, block: tuple[int, ...], shape: tuple[int, ...]) -> str:
    height, width = block[-2:]
    if (height, width) == shape[-2:]:
        return kind
    if height > 1:
        return f"{kind} {height}x{width}"
    return f"{kind} by row" if width == shape[-1] else f"{kind} g{width}"
