"""What the tests of quantised weights share: streams of bits, groups of parts, and comparison with numbers."""

from __future__ import annotations

import numpy as np

from mpfast.arrays import QuantisedArray
from mpfast.checkpoints.mapping import ArrayMapping
from mpfast.checkpoints.quantised.group import groups_of


def packed(codes, bits):
    """Pack codes, (..., n) below 2^bits, into int32 words along the last axis, the lowest bit of each first."""
    flags = (codes.astype(np.int64)[..., None] >> np.arange(bits) & 1).astype(np.uint8)
    stream = np.packbits(flags.reshape(*codes.shape[:-1], codes.shape[-1] * bits), axis=-1, bitorder="little")
    padded = np.zeros((*codes.shape[:-1], -(-stream.shape[-1] // 4) * 4), np.uint8)
    padded[..., : stream.shape[-1]] = stream
    return padded.view("<i4")


def model(arrays, quantization=None, **config):
    """A checkpoint in memory with a configuration."""
    checkpoint = ArrayMapping(arrays)
    said = {} if quantization is None else {"quantization_config": quantization}
    checkpoint.config = {**said, **config} or None
    return checkpoint


def group(arrays, quantization=None, **config):
    """The only quantised weight of a checkpoint."""
    (found,) = groups_of(model(arrays, quantization, **config))
    return found


def check(decoder, numbers, rounding=None, *, rtol=1e-6):
    """Compare what a decoder gives, whole and in parts, with its numbers and the variance of its rounding."""
    array = QuantisedArray(decoder)
    assert array.shape == numbers.shape
    np.testing.assert_array_equal(np.asarray(array), numbers)
    rows = numbers.shape[-2]
    for part in (slice(1, rows), slice(0, rows, 2), slice(1, rows, 2), slice(rows // 3, rows - rows // 4, 3)):
        index = part if numbers.ndim == 2 else (len(numbers) - 1, part)
        np.testing.assert_array_equal(np.asarray(array[index]), numbers[index])
    if rounding is None:
        assert array.rounding() is None
    else:
        np.testing.assert_allclose(array.rounding(), rounding, rtol=rtol)


class Part:
    """A part in memory, with blocks where it is scales."""

    def __init__(self, array, block=(1, 1)):
        self.array, self.block = array, block

    def read(self, matrix, rows):
        return self.array[matrix, rows]


def without(*words):
    """Return what takes parts of a weight ``l`` away."""

    def change(parts):
        for word in words:
            del parts[f"l.{word}"]

    return change


def with_part(word, value):
    """Return what puts another part into the place of one."""

    def change(parts):
        parts[f"l.{word}"] = value

    return change
