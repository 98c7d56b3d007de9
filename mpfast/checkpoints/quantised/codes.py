"""Numbers of eight bits and fewer by tables of all their codes, and how far apart neighbouring ones are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["E2M1", "FLOAT8", "VALUES", "exponents", "pairs", "rounding_of"]


def _float8(exponent_bits: int, mantissa_bits: int, bias: int) -> NDArray[np.float32]:
    """All values of a format with a sign and no special values, by code."""
    code = np.arange(256)
    mantissa = (code & ((1 << mantissa_bits) - 1)).astype(np.float64)
    exponent = code >> mantissa_bits & ((1 << exponent_bits) - 1)
    fraction = mantissa / (1 << mantissa_bits)
    value = np.where(exponent > 0, 1 + fraction, fraction) * 2.0 ** (np.maximum(exponent, 1) - bias)
    signed: NDArray[np.float32] = np.where(code < 128, value, -value).astype(np.float32)
    return signed


def _with(table: NDArray[np.float32], special: dict[int, float]) -> NDArray[np.float32]:
    for code, value in special.items():
        table[code] = value
    table.flags.writeable = False
    return table


_NAN = float("nan")
_INF = float("inf")
#: Values of the eight-bit floating-point types by their bits, (256,) each.
FLOAT8 = {
    "float8_e4m3fn": _with(_float8(4, 3, 7), {0x7F: _NAN, 0xFF: _NAN}),
    "float8_e5m2": _with(
        _float8(5, 2, 15),
        {0x7C: _INF, 0xFC: -_INF} | {code | sign: _NAN for code in (0x7D, 0x7E, 0x7F) for sign in (0, 128)},
    ),
    "float8_e4m3fnuz": _with(_float8(4, 3, 8), {0x80: _NAN}),
    "float8_e5m2fnuz": _with(_float8(5, 2, 16), {0x80: _NAN}),
}
#: The values of E2M1, FP4, by their four bits.
E2M1 = _with(np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32), {})


def exponents(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the powers of two that E8M0 stands for, ``2^(code - 127)``, and NaN for 255."""
    return _E8M0[codes]


_E8M0 = np.append(np.ldexp(1.0, np.arange(255) - 127), _NAN).astype(np.float32)


def pairs(values: NDArray[np.float32], *, high_first: bool = False) -> NDArray[np.float32]:
    """Return a table (256, 2) of the two values that a byte of four-bit codes stands for, those of a table (16,)."""
    byte = np.arange(256)
    nibbles = [byte >> 4, byte & 15] if high_first else [byte & 15, byte >> 4]
    return np.stack([values[nibble] for nibble in nibbles], axis=1)


#: What a byte of each type of codes holds: a value of eight bits, (256,), or two of four, (256, 2), the low ones first
#: where the name says no other order.
VALUES = {
    **FLOAT8,
    "float4_e2m1": pairs(E2M1),
    "float4_e2m1, high bits first": pairs(E2M1, high_first=True),
}


def rounding_of(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the variance of the rounding to each value of a table, taken evenly from what is rounded to it.

    Between two neighbours it goes to the nearer. Beyond the outermost, where values are clipped, as much is taken as on
    the other side; what is no number, or the only one, has none.
    """
    known = np.isfinite(values)
    grid = np.unique(values[known]).astype(np.float64)
    if len(grid) < 2:
        return np.zeros(len(values), np.float32)
    half = np.diff(grid) / 2
    below, above = np.concatenate([half[:1], half]), np.concatenate([half, half[-1:]])
    variance = (below**3 + above**3) / (3 * (below + above))
    found = np.zeros(len(values), np.float32)
    found[known] = variance[np.searchsorted(grid, values[known])]
    return found
