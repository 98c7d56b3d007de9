"""Integers of compressed-tensors: ``W = (code - zero) * scale``, packed into words or one in a byte.

``pack-quantized`` holds codes of one to eight bits along the inputs, and zero points along the outputs, both with
``2^(bits - 1)`` added; ``int-quantized`` and ``naive-quantized`` hold them as they are. Formats may differ from layer
to layer, and the configuration names layers by their classes, which are not known here: a layer is read by its parts,
and what their shapes leave open by what fits them of the configuration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mpfast.arrays import Decoder
from mpfast.checkpoints.quantised.affine import Affine, described
from mpfast.checkpoints.quantised.affine_parts import (
    CodesOfZero,
    Indexed,
    StoredIntegers,
    Stream,
    StreamAcross,
    check_floats,
    check_type,
)
from mpfast.checkpoints.quantised.bit_streams import words_for
from mpfast.checkpoints.quantised.blocks import Grid
from mpfast.checkpoints.quantised.group import Group, NotDecodedError, check_shape
from mpfast.checkpoints.quantised.parts import BlockScales
from mpfast.checkpoints.quantised.scaled_codes import Scales

__all__ = ["METHODS", "decoder_of_packs", "decoder_of_stored", "is_packed", "is_stored"]

#: What configurations call the method that stores weights so.
METHODS = frozenset({"compressed-tensors"})
_INTEGERS = ("int8", "int16")
# Orders of the inputs in which each has a group of its own; others leave no trace.
_BY_INDEX = ("group", "dynamic", True)
# Observers of the whole range; others look for ends that cut entries off.
_WHOLE_RANGE = (None, "minmax", "memoryless_minmax", "static_minmax")


def is_packed(group: Group) -> bool:
    """Whether the codes are packed into words of 32 bits; packs of floating-point numbers are of bytes."""
    return group.codes == "weight_packed" and group.info.dtype == "int32"


def is_stored(group: Group) -> bool:
    """Whether the codes are integers, one for each entry, with a scale of the name that this method gives it."""
    said = bool(group.method) or group.has("weight_scale")
    return said and group.codes in ("weight", "") and group.info.dtype in _INTEGERS


def decoder_of_packs(group: Group) -> Decoder:
    """Return the decoder; NotDecodedError where a part is missing or does not fit."""
    group.only("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")
    shape = _shape(group)
    bits = _bits(group, shape)
    check_shape(group, "weight_packed", (*shape[:-1], words_for(shape[-1], bits)))
    schemes = [scheme for scheme in _schemes(group) if scheme.get("num_bits") == bits]
    return _decoder(group, shape, bits, Stream(group, "weight_packed", bits, shape[-1]), 1 << bits - 1, schemes)


def decoder_of_stored(group: Group) -> Decoder:
    """Return the decoder; NotDecodedError where a part is missing or does not fit."""
    group.only(group.codes, "weight_scale", "weight_zero_point", "weight_g_idx")
    shape = group.info.shape
    if len(shape) not in (2, 3) or 0 in shape:
        raise NotDecodedError(f"has the shape {shape}, where 2 or 3 dimensions are expected")
    return _decoder(group, shape, 0, StoredIntegers(group, group.codes), 0, list(_schemes(group)))


def _decoder(
    group: Group,
    shape: tuple[int, ...],
    bits: int,
    codes: Stream | StoredIntegers,
    offset: int,
    schemes: list[Mapping[str, Any]],
) -> Decoder:
    """The decoder of either kind: what is packed has an offset, and zero points that may be packed, too."""
    scale = check_floats(group, "weight_scale")
    grid = _grid(scale.shape, shape, schemes, bits or int(group.info.dtype.removeprefix("int")))
    scales: Scales = BlockScales(group, "weight_scale", grid)
    zeros: Scales | float = float(offset)
    if group.has("weight_zero_point"):
        zeros = _zeros(group, shape, scale.shape, grid, bits)
    elif schemes and all(scheme.get("symmetric") is False for scheme in schemes):
        raise NotDecodedError("has no weight_zero_point, and is not symmetric")
    if _is_indexed(group, shape, schemes):
        count = grid.shape[-1]
        if grid.block[0] != 1 or count == 1:
            raise NotDecodedError("has groups of inputs by weight_g_idx, and scales that are of no groups")
        scales = Indexed(scales, group, "weight_g_idx", count)
        zeros = zeros if isinstance(zeros, float) else Indexed(zeros, group, "weight_g_idx", count)
    return Affine(
        shape,
        grid.described,
        codes,
        scales,
        zeros,
        nearest=all(scheme.get("observer") in _WHOLE_RANGE for scheme in schemes),
    )


def _shape(group: Group) -> tuple[int, ...]:
    """What weight_shape says, which has to be read for it."""
    dimensions = len(group.info.shape)
    check_type(group, "weight_shape", "int64", "int32")
    check_shape(group, "weight_shape", (dimensions,))
    shape = tuple(int(extent) for extent in group.read("weight_shape"))
    if dimensions not in (2, 3) or shape[:-1] != group.info.shape[:-1] or min(shape) < 1:
        raise NotDecodedError(f"has codes of the shape {group.info.shape}, and says that it has {shape}")
    return shape


def _bits(group: Group, shape: tuple[int, ...]) -> int:
    """The one number of bits that fills the words, of those in the configuration where there is one."""
    words = group.info.shape[-1]
    fitting = [bits for bits in range(1, 9) if words_for(shape[-1], bits) == words]
    said = {bits for scheme in _schemes(group) if type(bits := scheme.get("num_bits")) is int}
    if len(fitting) > 1:
        fitting = [bits for bits in fitting if bits in said]
    if len(fitting) != 1 or (said and fitting[0] not in said):
        named = f", where the configuration says {sorted(said)} bits" if said else ""
        raise NotDecodedError(f"has {words} words for {shape[-1]} inputs{named}")
    return fitting[0]


def _schemes(group: Group) -> Iterator[Mapping[str, Any]]:
    """How weights are stored as integers, of every group of layers in the configuration."""
    groups = group.settings.get("config_groups")
    for layers in groups.values() if isinstance(groups, Mapping) else ():
        weights = layers.get("weights") if isinstance(layers, Mapping) else None
        if isinstance(weights, Mapping) and weights.get("type", "int") == "int":
            yield weights


def _grid(scales: tuple[int, ...], shape: tuple[int, ...], schemes: list[Mapping[str, Any]], bits: int) -> Grid:
    """What every scale is of: by their shape, and what it leaves open by the configuration."""
    rows, columns = shape[-2:]
    if len(shape) == 2 and scales in ((), (1,), (rows,)):
        scales = (*scales, *(1, 1)[len(scales) :])
    if len(scales) != len(shape) or scales[:-2] != shape[:-2] or 0 in scales:
        raise NotDecodedError(f"has scales of the shape {scales}, which are not those of {shape}")
    down, across = scales[-2:]
    each = (shape[0] if len(shape) == 3 else 1, down, across)
    if (down, across) == (1, 1):
        return Grid(each, (rows, columns), f"int{bits}")
    width = _width(columns, across, schemes) if down == rows else None
    if width is not None:
        return Grid(each, (1, width), described(bits, width, columns))
    sizes = set(_blocks_said(schemes))
    blocks = [size for size in sizes if (-(-rows // size[0]), -(-columns // size[1])) == (down, across)]
    if len(blocks) == 1:
        return Grid(each, blocks[0], "int{} {}x{}".format(bits, *blocks[0]))
    raise NotDecodedError(f"has scales of the shape {scales} for {shape}, and nothing says of which blocks they are")


def _width(columns: int, across: int, schemes: list[Mapping[str, Any]]) -> int | None:
    """Inputs that share a scale, by the configuration where it says that; None where it says something else."""
    said = [size for scheme in schemes if type(size := scheme.get("group_size")) is int and size > 0]
    fitting = {min(size, columns) for size in said if -(-columns // size) == across}
    if fitting:
        return fitting.pop() if len(fitting) == 1 else None
    if across == 1 and len(said) == len(schemes) > 0:
        return None
    return columns // across if columns % across == 0 and (across == 1 or not said) else None


def _blocks_said(schemes: list[Mapping[str, Any]]) -> Iterator[tuple[int, int]]:
    """Rows and columns of a block, as the configuration says."""
    for scheme in schemes:
        said = scheme.get("block_structure")
        if isinstance(said, list) and len(said) == 2 and all(type(side) is int and side > 0 for side in said):
            yield said[0], said[1]


def _zeros(group: Group, shape: tuple[int, ...], scales: tuple[int, ...], grid: Grid, bits: int) -> Scales:
    """Zero points: packed along the outputs like the codes, or as they are."""
    info = check_type(group, "weight_zero_point", "int8", "int32")
    if info.dtype == "int32" and bits:
        if grid.block[0] != 1:
            raise NotDecodedError("has packed zero points of rows, and scales that are not of rows")
        check_shape(group, "weight_zero_point", (*shape[:-2], words_for(shape[-2], bits), grid.shape[-1]))
        return CodesOfZero(StreamAcross(group, "weight_zero_point", bits, transposed=True), grid.block[1])
    if bits:
        raise NotDecodedError(f"has packed codes, and zero points of {info.dtype} that are not")
    check_type(group, "weight_zero_point", "int8")
    check_shape(group, "weight_zero_point", scales)
    return BlockScales(group, "weight_zero_point", grid)


def _is_indexed(group: Group, shape: tuple[int, ...], schemes: list[Mapping[str, Any]]) -> bool:
    """Whether inputs have groups of their own; the library writes -1 where they do not."""
    if not group.has("weight_g_idx"):
        if schemes and all(scheme.get("actorder") in _BY_INDEX for scheme in schemes):
            raise NotDecodedError("has no weight_g_idx, and the configuration says that inputs are in groups by it")
        return False
    check_type(group, "weight_g_idx", "int32", "int64")
    check_shape(group, "weight_g_idx", (shape[-1],))
    return bool((group.read("weight_g_idx") != -1).any())
