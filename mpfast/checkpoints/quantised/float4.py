"""E2M1, floating-point numbers of four bits, two in a byte with the low nibble first, along the inputs.

Every 32 or 16 of a row have a scale: in MXFP4 a power of two; in NVFP4 a float8, and the matrix one more on top, which
compressed-tensors and the kernels of transformers divide by and ModelOpt multiplies with.
"""

from __future__ import annotations

import math
import re

from mpfast.arrays import Decoder
from mpfast.checkpoints.base import OutputPart, Role
from mpfast.checkpoints.families import family_of
from mpfast.checkpoints.fused import FusedParts, fused_parts
from mpfast.checkpoints.quantised.blocks import Grid
from mpfast.checkpoints.quantised.group import Group, NotDecodedError, check_shape
from mpfast.checkpoints.quantised.parts import BlockScales, StoredCodes, TwoLevels, is_exponents
from mpfast.checkpoints.quantised.scaled_codes import ScaledCodes

__all__ = [
    "GPT_OSS_METHODS",
    "MXFP4_METHODS",
    "NVFP4_METHODS",
    "gpt_oss_mxfp4",
    "is_blocks",
    "is_mxfp4",
    "is_nvfp4",
    "is_transposed",
    "mxfp4",
    "nvfp4",
    "stack_role",
]

GPT_OSS_METHODS = frozenset({"mxfp4"})
MXFP4_METHODS = frozenset({"compressed-tensors", "fp8"})
NVFP4_METHODS = frozenset({"compressed-tensors", "modelopt", "modelopt_fp4", "nvfp4"})
# What OpenAI calls the projections into experts and out of them.
_OPENAI = re.compile(r"(^|\.)mlp[12]_weight$")
_MX, _NV = 32, 16
# Scales of the kernels that transformers has, in float8 as bytes.
_ROW_BY_ROW, _IN_TILES = "weight_sf_rowmajor", "weight_sf"


def is_blocks(group: Group) -> bool:
    """Whether codes lie in blocks of 32, as in gpt-oss."""
    return group.codes == "blocks" and group.info.dtype == "uint8"


def gpt_oss_mxfp4(group: Group) -> Decoder:
    """Return the decoder of ``blocks`` (E, N, K/32, 16) with exponents ``scales`` (E, N, K/32), or of one matrix.

    The stack is (E, N, K) = (E, out, in), the transpose of the parameter that transformers makes of it.
    """
    shape = group.info.shape
    if len(shape) not in (3, 4) or shape[-1] != _MX // 2:
        raise NotDecodedError(f"has the shape {shape}, where (..., rows, blocks, 16) is expected")
    group.only("blocks", "scales")
    return _decoder(group, (*shape[:-2], shape[-2] * shape[-1]), "scales", _MX)


def stack_role(group: Group, shape: tuple[int, ...]) -> Role | None:
    """Return the role of a stack of gpt-oss: its codes lie along the inputs, unlike those of the dense model."""
    if len(shape) != 3:
        return None
    config = getattr(group.checkpoint, "config", None)
    found = fused_parts(group.name, shape, (2,), config, family_of(config))
    if group.name.endswith("mlp1_weight") and shape[1] % 2 == 0:  # to both, row by row in turn
        runs = shape[1] // 2
        found = FusedParts((OutputPart("gate", 0, 1, runs, 2), OutputPart("up", 1, 1, runs, 2)))
    return Role("experts", (2,), source="storage", parts=found.parts, unsplit=found.reason)


def is_transposed(group: Group) -> bool:
    """Whether the dense model has (E, in, out): transformers' has, OpenAI's own has not."""
    return len(group.info.shape) == 4 and not _OPENAI.search(group.name)


def is_mxfp4(group: Group) -> bool:
    """Whether every row is packed by itself, with exponents beside it: of compressed-tensors and of DeepSeek-V4."""
    if group.codes == "weight_packed":
        return group.info.dtype == "uint8" and not _is_nv(group)
    return group.codes == "weight" and group.info.dtype == "int8" and _has_exponents(group, "scale")


def mxfp4(group: Group) -> Decoder:
    """Return the decoder of codes (N, K/2) or (E, N, K/2) and exponents (..., K/32)."""
    word = "weight_scale" if group.codes == "weight_packed" else "scale"
    group.only(group.codes, word)
    return _decoder(group, _packed_shape(group), word, _MX)


def is_nvfp4(group: Group) -> bool:
    """Whether there are two levels of scales beside bytes of codes."""
    if group.info.dtype != "uint8":
        return False
    if group.codes == "weight_packed":
        return _is_nv(group)
    return group.codes == "weight" and (group.has("weight_scale_2") or _has_float8(group) or _is_of_kernels(group))


def nvfp4(group: Group) -> Decoder:
    """Return the decoder of codes (N, K/2) or (E, N, K/2), float8 scales (..., K/16), and one for a matrix.

    The last is ``weight_global_scale``, a divisor, or ``weight_scale_2``, a multiplier. The kernels that transformers
    has store the float8 scales twice, as bytes: row by row, and once more in the order of tensor cores.
    """
    of_kernels = _is_of_kernels(group)
    divisor = of_kernels or group.codes == "weight_packed"
    last = "weight_global_scale" if divisor else "weight_scale_2"
    word = _ROW_BY_ROW if of_kernels else "weight_scale"
    group.only(group.codes, word, last, *((_IN_TILES,) if of_kernels else ()))
    shape = _packed_shape(group)
    each = [(shape[0],), (shape[0], 1), (shape[0], 1, 1)] if len(shape) == 3 else []
    info = check_shape(group, last, (), (1,), *each)
    if info.dtype not in ("float32", "float64"):
        raise NotDecodedError(f"{info.name} is {info.dtype}, where float32 is expected")
    return _decoder(group, shape, word, _NV, last, divisor=divisor)


def _is_nv(group: Group) -> bool:
    return group.has("weight_global_scale") or (group.has("weight_scale") and not is_exponents(group, "weight_scale"))


def _is_of_kernels(group: Group) -> bool:
    """Whether the scales are called as the kernels do that transformers has for NVFP4."""
    return group.has(_ROW_BY_ROW) or group.has(_IN_TILES)


def _has_float8(group: Group) -> bool:
    return group.has("weight_scale") and group.parts["weight_scale"].dtype == "float8_e4m3fn"


def _has_exponents(group: Group, word: str) -> bool:
    return group.has(word) and group.parts[word].dtype == "float8_e8m0fnu"


def _packed_shape(group: Group) -> tuple[int, ...]:
    shape = group.info.shape
    if len(shape) not in (2, 3):
        raise NotDecodedError(f"has {len(shape)} dimensions, where 2 or 3 are expected")
    return shape


def _decoder(
    group: Group, packed: tuple[int, ...], word: str, size: int, last: str = "", *, divisor: bool = False
) -> Decoder:
    """Return the decoder of packed rows (..., K/2) with a scale for each `size` numbers; see `nvfp4` for the last."""
    shape = (*packed[:-1], 2 * packed[-1])
    if math.prod(shape) == 0 or shape[-1] % size:
        raise NotDecodedError(f"has {shape[-1]} numbers in a row, where blocks of {size} are expected")
    info = check_shape(group, word, (*shape[:-1], shape[-1] // size))
    in_bytes = word == _ROW_BY_ROW
    expected = ("uint8",) if in_bytes else ("float8_e4m3fn",) if last else ("float8_e8m0fnu", "uint8")
    if info.dtype not in expected:
        raise NotDecodedError(f"{info.name} is {info.dtype}, where {' or '.join(expected)} is expected")
    matrices = shape[0] if len(shape) == 3 else 1
    grid = Grid((matrices, shape[-2], shape[-1] // size), (1, size), f"1x{size}")
    scales = BlockScales(group, word, grid, "float8_e4m3fn" if in_bytes else "")
    return ScaledCodes(
        shape,
        "nvfp4" if last else "mxfp4",
        # Two digits times a power of two: every number that float32 holds of them, bfloat16 holds, too.
        "float32" if last else "bfloat16",
        "float4_e2m1",
        StoredCodes(group, group.codes, packed),
        TwoLevels(scales, group, last, divisor=divisor) if last else scales,
        largest_is_exact=bool(last),
    )
