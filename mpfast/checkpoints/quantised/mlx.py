"""MLX, and ``metal`` of transformers: codes in words of 32 bits along the inputs.

``W = code * scale + bias`` by groups of a row in the mode ``affine``, E2M1 or E4M3 times a scale in the others. How
many bits a code has, and how many of them a scale, is in the configuration alone, where a layer may have its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import Decoder
from mpfast.checkpoints.quantised.affine import Affine, described
from mpfast.checkpoints.quantised.affine_parts import Stream, check_floats, check_type
from mpfast.checkpoints.quantised.bit_streams import words_for
from mpfast.checkpoints.quantised.blocks import Grid
from mpfast.checkpoints.quantised.codes import FLOAT8
from mpfast.checkpoints.quantised.group import Group, NotDecodedError, check_shape
from mpfast.checkpoints.quantised.parts import BlockScales, StoredCodes
from mpfast.checkpoints.quantised.scaled_codes import ScaledCodes
from mpfast.support import short

__all__ = ["METHODS", "decoder", "is_mlx"]


@dataclass(frozen=True)
class _Mode:
    """A mode of floating-point codes: their bits, how many have a scale, their type; whether scales are exponents."""

    bits: int
    width: int
    code: str
    powers: bool


_MODES = {
    "mxfp4": _Mode(4, 32, "float4_e2m1", True),
    "mxfp8": _Mode(8, 32, "float8_e4m3fn", True),
    "nvfp4": _Mode(4, 16, "float4_e2m1", False),
}
#: What configurations call the methods that store weights so: MLX gives its mode, or nothing but the numbers.
METHODS = frozenset({"affine", "metal", "quantization", "quantization_config", *_MODES})


def is_mlx(group: Group) -> bool:
    """Whether the codes are words without a sign, which nothing else stores."""
    return group.info.dtype == "uint32" and group.codes in ("weight", "")


def decoder(group: Group) -> Decoder:
    """Return the decoder; NotDecodedError where a part is missing or does not fit what the configuration says."""
    said = _settings(group)
    mode = said.get("mode", "affine")
    known = _MODES.get(mode) if isinstance(mode, str) else None
    if known is None and mode != "affine":
        raise NotDecodedError(
            f"is stored in the mode {short(mode)} of MLX, where affine or one of {sorted(_MODES)} is read"
        )
    bits, width = said.get("bits", known and known.bits), said.get("group_size", known and known.width)
    if not _is_count(bits, 8) or not _is_count(width, 1 << 20):
        raise NotDecodedError("has no configuration beside it that says of how many bits its codes are, and its groups")
    shape = _shape(group, bits, width)
    matrices = shape[0] if len(shape) == 3 else 1
    grid = Grid((matrices, shape[-2], shape[-1] // width), (1, width), f"1x{width}")
    if known is not None:
        return _of_table(group, known, mode, (bits, width), shape, grid)
    bias = "qbiases" if group.has("qbiases") else "biases"
    group.only(group.codes, "scales", bias)
    check_floats(group, "scales")
    check_floats(group, bias, group.parts["scales"].shape)
    return Affine(
        shape,
        described(bits, width, shape[-1]),
        Stream(group, group.codes, bits, shape[-1]),
        BlockScales(group, "scales", grid),
        biases=BlockScales(group, bias, grid),
        # MLX lets grids begin at the end that is farther from zero, exactly, and they may stop short of the other:
        # of normal numbers at four bits, rounding adds a fifth of what it would, or even takes some away.
        nearest=bias == "qbiases",
    )


def _of_table(
    group: Group, mode: _Mode, name: str, found: tuple[int, int], shape: tuple[int, ...], grid: Grid
) -> Decoder:
    """The decoder of a mode that is no uniform grid."""
    if found != (mode.bits, mode.width):
        raise NotDecodedError(f"has {found[0]} bits in groups of {found[1]}, which {name} does not have")
    group.only(group.codes, "scales")
    check_type(group, "scales", "uint8")
    stored = group.info.shape
    exponents = BlockScales(group, "scales", grid)
    return ScaledCodes(
        shape,
        name,
        # A few digits times a power of two, or times a float8.
        "bfloat16" if mode.powers else "float32",
        mode.code,
        StoredCodes(group, group.codes, (*stored[:-1], 4 * stored[-1])),
        exponents if mode.powers else _Float8Scales(exponents),
    )


@dataclass(frozen=True)
class _Float8Scales:
    """Scales that are stored as the bytes of E4M3."""

    bytes: BlockScales

    @property
    def block(self) -> tuple[int, int]:
        return self.bytes.block

    def read(self, matrix: int, rows: slice) -> NDArray[np.float32]:
        scales = self.bytes
        codes = scales.group.read(scales.word).reshape(scales.grid.shape)[matrix, rows]
        found: NDArray[np.float32] = np.take(FLOAT8["float8_e4m3fn"], codes)
        return found


def _settings(group: Group) -> Mapping[str, Any]:
    """What the configuration says of this layer, in the place of what it says of all."""
    own = group.settings.get(group.stem)
    return {**group.settings, **own} if isinstance(own, Mapping) else group.settings


def _shape(group: Group, bits: int, width: int) -> tuple[int, ...]:
    """The shape of the weight, by its scales, where the codes take as many words."""
    if not group.has("scales"):
        raise NotDecodedError("has no scales, and is never cast without them")
    scales = group.parts["scales"].shape
    if len(scales) not in (2, 3) or 0 in scales:
        raise NotDecodedError(f"has scales of the shape {scales}, where (outputs, groups) is expected")
    shape = (*scales[:-1], scales[-1] * width)
    words = (*scales[:-1], words_for(shape[-1], bits))
    if group.info.shape != words:
        raise NotDecodedError(
            f"has words of the shape {group.info.shape}, where {bits} bits in groups of {width} take {words}"
        )
    check_shape(group, group.codes, words)
    return shape


def _is_count(value: Any, largest: int) -> bool:
    return type(value) is int and 0 < value <= largest
