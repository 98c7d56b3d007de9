"""Packed weights of ONNX, as the nodes take them that they go into.

``DequantizeLinear``: ``W = (x - zero_point) * scale`` with a scale for the tensor, for each entry of an axis, or for
blocks of an axis. ``MatMulNBits`` of ONNX Runtime: blocks along the inputs of codes of a few bits, whose zero is half
of their range where there are no zero points; each input may say which block's scale it has (``g_idx``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import Decoder
from mpfast.checkpoints.base import Role
from mpfast.checkpoints.quantised.affine import Affine, described
from mpfast.checkpoints.quantised.affine_parts import Indexed, StoredIntegers, check_floats, check_type, runs
from mpfast.checkpoints.quantised.bit_streams import unpacked
from mpfast.checkpoints.quantised.blocks import Grid
from mpfast.checkpoints.quantised.codes import FLOAT8
from mpfast.checkpoints.quantised.group import Group, NotDecodedError, check_shape
from mpfast.checkpoints.quantised.parts import BlockScales, StoredCodes
from mpfast.checkpoints.quantised.scaled_codes import ScaledCodes, Scales
from mpfast.support import short

__all__ = ["METHODS", "dequantize_linear", "is_dequantize_linear", "is_mat_mul_n_bits", "mat_mul_n_bits", "role_of"]

#: What the reader of ONNX calls the method; no configuration does.
METHODS = frozenset({"onnx"})
_BYTES = ("int8", "uint8", "int16", "uint16")
# Types of integers below a byte, with their bits.
_PACKED = {"int4": 4, "uint4": 4, "int2": 2, "uint2": 2}


class _Packed(Protocol):
    """A checkpoint with tensors of integers below a byte."""

    def packed(self, name: str) -> NDArray[np.uint8]:
        """Return the bytes of one."""


def is_dequantize_linear(group: Group) -> bool:
    """Whether a node turns the weights into numbers before they are used; or one that is not read takes them."""
    return "operator" in group.settings and not is_mat_mul_n_bits(group)


def is_mat_mul_n_bits(group: Group) -> bool:
    """Whether ONNX Runtime's product takes the weights."""
    return group.settings.get("operator") == "MatMulNBits"


@dataclass(frozen=True)
class _Below:
    """Integers below a byte, one after the other over all rows, with their sign."""

    group: Group
    word: str
    shape: tuple[int, ...]

    def read(self, matrix: int, rows: slice) -> NDArray[np.int8]:
        """Return those of some rows."""
        info = self.group.parts[self.word]
        bits = _PACKED[info.dtype]
        stored = cast(_Packed, self.group.checkpoint).packed(info.name)  # as all that has such nodes
        found = [np.empty((0,), np.uint8)]
        for first, last in runs(self.shape, matrix, rows):
            begin = first * bits // 8
            held = stored[begin : -(-last * bits // 8)]
            found.append(unpacked(held[None], bits, slice(first - begin * 8 // bits, last - begin * 8 // bits))[0])
        codes = np.concatenate(found).view(np.int8).reshape(-1, self.shape[-1])
        return codes - ((codes >> bits - 1) << bits) if info.dtype.startswith("int") else codes


def dequantize_linear(group: Group) -> Decoder:
    """Return the decoder; NotDecodedError where another node takes the weights, or a part is missing or misfits."""
    operator = group.settings.get("operator")
    if operator != "DequantizeLinear":
        raise NotDecodedError(f"is taken by {short(operator)}, where DequantizeLinear and MatMulNBits are read")
    attributes = _attributes(group)
    group.only("", "scale", "zero_point")
    info = group.info
    shape = info.shape
    if len(shape) not in (2, 3) or 0 in shape:
        raise NotDecodedError(f"has the shape {shape}, where 2 or 3 dimensions are expected")
    grid = _grid(check_floats(group, "scale").shape, shape, attributes)
    scales = BlockScales(group, "scale", grid)
    if info.dtype in FLOAT8:
        group.only("", "scale")
        label = f"fp8 {grid.described}".strip()
        return ScaledCodes(shape, label, "float32", info.dtype, StoredCodes(group, "", shape), scales)
    check_type(group, "", *_BYTES, *_PACKED)
    zeros: Scales | float = 0.0
    if group.has("zero_point"):
        check_type(group, "zero_point", info.dtype)
        check_shape(group, "zero_point", group.parts["scale"].shape)
        zeros = _ZeroPoints(group, grid)
    codes = _Below(group, "", shape) if info.dtype in _PACKED else StoredIntegers(group, "")
    return Affine(shape, f"{info.dtype} {grid.described}".strip(), codes, scales, zeros)


@dataclass(frozen=True)
class _ZeroPoints:
    """Zero points of the blocks of a grid, in the type of the codes."""

    group: Group
    grid: Grid

    @property
    def block(self) -> tuple[int, int]:
        return self.grid.block

    def read(self, matrix: int, rows: slice) -> NDArray[np.float32]:
        matrices, down, across = self.grid.shape
        info = self.group.parts["zero_point"]
        matrix = matrix if matrices > 1 else 0
        if info.dtype in _PACKED:
            rows = slice(*rows.indices(down))
            return _Below(self.group, "zero_point", self.grid.shape).read(matrix, rows).astype(np.float32)
        points: NDArray[Any] = self.group.read("zero_point").reshape(matrices, down, across)[matrix, rows]
        return points.astype(np.float32)


def mat_mul_n_bits(group: Group) -> Decoder:
    """Return the decoder of ``B`` (N, blocks, bytes of a block); NotDecodedError where a part is missing or misfits."""
    said = _attributes(group)
    group.only("", "scales", "zero_points", "g_idx")
    inputs, outputs, bits, width = (said.get(word, 0) for word in ("K", "N", "bits", "block_size"))
    bits = bits or 4  # its default
    if min(inputs, outputs, width) < 1 or not 1 <= bits <= 8 or width * bits % 8:
        raise NotDecodedError(
            f"has {bits} bits in blocks of {width} for ({outputs}, {inputs}), which is none of its kind"
        )
    if said.get("weight_prepacked", 0):
        raise NotDecodedError("is packed for one machine")
    blocks = -(-inputs // width)
    check_type(group, "", "uint8")
    check_shape(group, "", (outputs, blocks, width * bits // 8), (outputs, blocks * width * bits // 8))
    grid = Grid((1, outputs, blocks), (1, width), f"g{width}")
    check_floats(group, "scales", (outputs * blocks,), (outputs, blocks))
    scales: Scales = BlockScales(group, "scales", grid)
    zeros: Scales | float = float(1 << bits - 1)
    if group.has("zero_points"):
        zeros = _zeros_of_product(group, bits, grid)
    if group.has("g_idx"):
        # ONNX Runtime 1.32 leaves packed zero points out then, and takes two bits for four.
        if bits != 4 or isinstance(zeros, _PackedZeros):
            what = f"{bits} bits" if bits != 4 else "packed zero points"
            raise NotDecodedError(f"has {what} under g_idx, and what these mean there is not known")
        check_type(group, "g_idx", "int32")
        check_shape(group, "g_idx", (inputs,), (blocks * width,))
        scales = Indexed(scales, group, "g_idx", blocks)
        zeros = zeros if isinstance(zeros, float) else Indexed(zeros, group, "g_idx", blocks)
    codes = _BlockRows(group, "", outputs, bits, inputs)
    return Affine((outputs, inputs), described(bits, width, inputs), codes, scales, zeros)


def role_of(group: Group, shape: tuple[int, ...]) -> Role:
    """Return the role of the weights of a product, (N, K) whatever the shape of their blocks is."""
    return Role("linear", (1,), source="ONNX node")


@dataclass(frozen=True)
class _BlockRows:
    """Codes of a few bits, each row in bytes of its own."""

    group: Group
    word: str
    rows: int
    bits: int
    columns: int

    def read(self, matrix: int, rows: slice) -> NDArray[np.uint8]:
        """Return those of some rows."""
        stored = self.group.read(self.word).reshape(self.rows, -1)
        return unpacked(stored[rows], self.bits, slice(0, self.columns))


@dataclass(frozen=True)
class _PackedZeros:
    """Zero points in the bits of the codes."""

    codes: _BlockRows
    block: tuple[int, int]

    def read(self, matrix: int, rows: slice) -> NDArray[np.float32]:
        return self.codes.read(matrix, rows).astype(np.float32)


def _zeros_of_product(group: Group, bits: int, grid: Grid) -> Scales:
    """Zero points of blocks: packed like the codes, or numbers."""
    _, outputs, blocks = grid.shape
    info = group.parts["zero_points"]
    if info.dtype != "uint8":
        check_floats(group, "zero_points", (outputs * blocks,), (outputs, blocks))
        return BlockScales(group, "zero_points", grid)
    held = -(-blocks * bits // 8)
    check_shape(group, "zero_points", (outputs * held,), (outputs, held))
    return _PackedZeros(_BlockRows(group, "zero_points", outputs, bits, blocks), grid.block)


def _attributes(group: Group) -> Mapping[str, int]:
    """The attributes of the node, where nothing keeps the weights from being known."""
    if group.settings.get("unknown"):
        raise NotDecodedError(str(group.settings["unknown"]))
    found: Mapping[str, int] = group.settings["attributes"]
    return found


def _grid(scales: tuple[int, ...], shape: tuple[int, ...], said: Mapping[str, int]) -> Grid:
    """What every scale is of: all of a tensor, an entry of an axis, or a block along it."""
    matrices = shape[0] if len(shape) == 3 else 1
    rows, columns = shape[-2:]
    if scales in ((), (1,)):
        return Grid((1, 1, 1), (rows, columns), "")
    axis = said.get("axis", 1)
    axis += len(shape) if axis < 0 else 0
    size = said.get("block_size", 0)
    if not 0 <= axis < len(shape) or size < 0:
        raise NotDecodedError(f"has the axis {said.get('axis', 1)} and blocks of {size} for {shape}")
    # Axes counted from the last two, of which the first may be that of the matrices.
    place = axis - len(shape)
    if not size and scales == (shape[axis],):
        by = {-3: (1, 1), -2: (rows, 1), -1: (1, columns)}[place]
        each = shape[0] if place == -3 else 1
        label = {-3: "", -2: "by row", -1: "by column"}[place]
        return Grid((each, *by), (rows // by[0], columns // by[1]), label)
    blocks = tuple(-(-side // size) if at == axis else side for at, side in enumerate(shape)) if size else ()
    if scales != blocks or place == -3:
        raise NotDecodedError(
            f"has scales of the shape {scales} for {shape}, along the axis {axis} in blocks of {size}"
        )
    block = (size, 1) if place == -2 else (1, size)
    return Grid((matrices, blocks[-2], blocks[-1]), block, f"{block[0]}x{block[1]}")
