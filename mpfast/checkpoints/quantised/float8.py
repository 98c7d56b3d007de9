"""Floating-point numbers of eight bits and their scales: one for the matrix, one for each row, one for each block.

The scales multiply, whatever they are called: of DeepSeek's ``weight_scale_inv``, too. ``W[i, j] = code[i, j] *
scale[i // rows, j // columns]``; blocks at the ends are cut off.
"""

from __future__ import annotations

from mpfast.arrays import Decoder
from mpfast.checkpoints.quantised.blocks import Grid, grid_of
from mpfast.checkpoints.quantised.codes import FLOAT8
from mpfast.checkpoints.quantised.group import Group, NotDecodedError
from mpfast.checkpoints.quantised.parts import BlockScales, StoredCodes, check_scale, is_exponents
from mpfast.checkpoints.quantised.scaled_codes import ScaledCodes

__all__ = ["METHODS", "decoder", "is_float8"]

#: What configurations call the methods that store weights so.
METHODS = frozenset({"fp8", "mxfp8", "fbgemm_fp8", "compressed-tensors", "modelopt", "quark"})
#: What the scales are called: by DeepSeek, in stacks of experts, by most others, by ComfyUI, and by DeepSeek-V4.
_SCALES = ("weight_scale_inv", "scale_inv", "weight_scale", "scale_weight", "scale")


def is_float8(group: Group) -> bool:
    """Whether the codes are floating-point numbers of eight bits, with or without a scale."""
    return group.info.dtype in FLOAT8 and group.codes in ("weight", "")


def decoder(group: Group) -> Decoder:
    """Return the decoder; NotDecodedError where there is no scale, or it does not fit."""
    found = [word for word in _SCALES if group.has(word)]
    if not found:
        raise NotDecodedError("has no scale, and is never cast without one")
    group.only(group.codes, found[0])
    info = group.info
    if len(info.shape) not in (2, 3):
        raise NotDecodedError(f"has {len(info.shape)} dimensions, where 2 or 3 are expected")
    check_scale(group, found[0])
    grid = grid_of(group, found[0], info.shape)
    powers = is_exponents(group, found[0])
    return ScaledCodes(
        info.shape,
        _label(info.dtype, grid, powers),
        # Four digits at most times a power of two: bfloat16 holds eight, down to 2^-133.
        "bfloat16" if powers else "float32",
        info.dtype,
        StoredCodes(group, group.codes, info.shape),
        BlockScales(group, found[0], grid),
    )


def _label(dtype: str, grid: Grid, powers: bool) -> str:
    """Say in a few words how a matrix is stored."""
    kind = "fp8" if dtype == "float8_e4m3fn" else f"fp8 {dtype.removeprefix('float8_')}"
    if grid.described == "1x32" and powers:
        return f"mx{kind}"
    return f"{kind} {grid.described}" if grid.described else kind
