"""Integers of fewer than eight bits in words, one after the other from the lowest bit on, across the ends of words."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["WORDS", "packed", "unpacked", "words_for"]

#: Types of the words that hold streams: signed ones by their bits.
WORDS = ("int32", "uint32")
_BITS_OF_A_WORD = 32


def words_for(count: int, bits: int) -> int:
    """Return how many words of 32 bits as many codes take."""
    return -(-count * bits // _BITS_OF_A_WORD)


def packed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """Return the words that hold the codes of each row, as `unpacked` reads them; bits that are left over are 0.

    Parameters
    ----------
    codes : (R, n) array
        Each below ``2 ** bits``.
    bits : int
        Of a code, 1 to 8.
    """
    rows, count = codes.shape
    flags = np.unpackbits(codes[:, :, None], axis=2, count=bits, bitorder="little").reshape(rows, count * bits)
    held = np.zeros((rows, 4 * words_for(count, bits)), np.uint8)
    stream = np.packbits(flags, axis=1, bitorder="little")
    held[:, : stream.shape[1]] = stream
    return held.view("<i4")


def unpacked(words: NDArray[Any], bits: int, chosen: slice) -> NDArray[np.uint8]:
    """Return some of the codes in each row of words.

    Parameters
    ----------
    words : (R, W) array of 32-bit words, or of bytes
        Code i is in the bits from ``i * bits`` on, counted from the lowest of the first word.
    bits : int
        Of a code, 1 to 8.
    chosen : slice
        Which codes, with a start, a stop within the row and a positive step.

    Returns
    -------
    (R, codes) array
    """
    stream = np.ascontiguousarray(words, words.dtype.newbyteorder("<")).view(np.uint8)
    first, last = chosen.start // 8, -(-chosen.stop // 8)
    # Eight codes take as many bytes as one takes bits: less than a word of 64 bits, which they are shifted out of.
    eights = np.zeros((len(stream), last - first, 8), np.uint8)
    held = stream[:, first * bits : last * bits]
    whole = held.shape[1] // bits
    eights[:, :whole, :bits] = held[:, : whole * bits].reshape(len(stream), whole, bits)
    rest = held.shape[1] - whole * bits
    if rest:
        eights[:, whole, :rest] = held[:, whole * bits :]
    numbers = eights.view("<u8")[..., 0]
    codes = np.empty(eights.shape, np.uint8)
    for place in range(8):
        codes[..., place] = numbers >> np.uint64(place * bits) & np.uint64((1 << bits) - 1)
    within = slice(chosen.start - 8 * first, chosen.stop - 8 * first, chosen.step)
    return codes.reshape(len(stream), 8 * (last - first))[:, within]
