"""Masks of quantised weights, written in their own formats: codes that stand for zero, and nothing else changed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mpfast.checkpoints.base import Checkpoint
from mpfast.checkpoints.quantised.parts import StoredCodes
from mpfast.checkpoints.quantised.reader import Dequantised, QuantisedWeight
from mpfast.checkpoints.quantised.scaled_codes import ScaledCodes, by_rows
from mpfast.support import InvalidValueError

__all__ = ["masked_codes", "reason_against_masking", "repackable"]

# Entries masked at a time.
_CHUNK_ENTRIES = 4 << 20


def repackable(checkpoint: Checkpoint) -> Dequantised:
    """Return a checkpoint with quantised weights whose masks can be written in their own formats.

    Raises
    ------
    InvalidValueError
        No weight is quantised, or a mask can be written of none.
    """
    if any(info.stored for info in checkpoint.tensors) and not isinstance(checkpoint, Dequantised):
        raise InvalidValueError("repack", "is not there for GGUF, which is not written")
    if not isinstance(checkpoint, Dequantised):
        raise InvalidValueError("repack", "has nothing to do: no weight of the model is quantised")
    reasons = {name: reason_against_masking(weight) for name, weight in checkpoint.weights.items()}
    reasons = reasons or checkpoint.refused
    if all(reasons.values()):
        name, why = next(iter(reasons.items()))
        raise InvalidValueError("repack", f"is not possible: {name} {why}")
    return checkpoint


def reason_against_masking(weight: QuantisedWeight) -> str:
    """Say why entries of a quantised weight cannot be set to zero in what is stored; empty where they can."""
    decoder = weight.decoder
    if weight.group.source == "ONNX node":
        return "is said how to be read by a graph, which is not written"
    if not isinstance(decoder, ScaledCodes) or not isinstance(decoder.codes, StoredCodes):
        return f"is stored as {decoder.stored}, in which no code stands for zero under every scale"
    if decoder.table[0].any() or np.signbit(decoder.table[0]).any():
        return f"is stored as {decoder.stored}, whose code of zero bits is no zero"
    return ""


def masked_codes(weight: QuantisedWeight, keep: NDArray[np.bool_]) -> Iterator[memoryview]:
    """Yield the bytes of a weight's codes in pieces, with zero bits where a mask drops entries.

    Parameters
    ----------
    weight
        One that `reason_against_masking` has nothing to say of.
    keep : array of bool, of as many entries as the weight
        True = kept.

    Raises
    ------
    InvalidValueError
        A scale of entries that are dropped is negative or not finite: zero times it is not the zero that is wanted.
    """
    decoder = weight.decoder
    assert isinstance(decoder, ScaledCodes), "reason_against_masking says so"
    shape = (-1, *decoder.shape[-2:])
    step = max(1, _CHUNK_ENTRIES // decoder.shape[-1])
    for matrix, kept in enumerate(keep.reshape(shape)):
        for first in range(0, len(kept), step):
            rows = slice(first, min(first + step, len(kept)))
            _check_scales(weight, by_rows(decoder.scales, matrix, rows), kept[rows], decoder.scales.block[1])
            codes = decoder.codes.read(matrix, rows)
            yield np.bitwise_and(codes, _bits_kept(decoder.table, kept[rows], codes.shape)).reshape(-1).data


def _bits_kept(table: NDArray[np.float32], keep: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return the bits of each byte that belong to entries which are kept."""
    flags = keep.view(np.uint8)
    if table.ndim == 1:
        return flags * np.uint8(0xFF)
    low, high = (0, 1) if table[1, 0] else (1, 0)
    pairs = flags.reshape(*shape, 2)
    found: NDArray[np.uint8] = pairs[..., low] * np.uint8(0x0F) | pairs[..., high] * np.uint8(0xF0)
    return found


def _check_scales(weight: QuantisedWeight, scales: NDArray[np.float32], keep: NDArray[np.bool_], width: int) -> None:
    bad = ~np.isfinite(scales) | np.signbit(scales)
    if not bad.any():
        return
    row, column = np.nonzero(~keep)
    wrong = bad[row, column // width]
    if wrong.any():
        at = int(np.argmax(wrong))
        value = scales[row[at], column[at] // width]
        fact = f"is not possible: zero times {value}, a scale of {weight.group.name}, is not the zero that a mask means"
        raise InvalidValueError("repack", fact)
