"""A GGUF file whose matrices are in blocks of 32 integers with a scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mpfast.checkpoints import GgufFile, GgufWriter, Layer, SourceFiles, copy_companions, files_behind
from mpfast.models.integer_fits import IntegerFits, Integers, QuantizedLayer
from mpfast.models.output_mark import mark_output
from mpfast.support import InvalidValueError, OutputDirectory

__all__ = ["BLOCK", "GGUF_BITS", "write_gguf"]

#: Weights that share a scale.
BLOCK = 32
#: Bits of a weight, by the name of the type.
GGUF_BITS = {"Q4_0": 4, "Q8_0": 8}
_FILE = "model.gguf"


def write_gguf(
    checkpoint: GgufFile, place: OutputDirectory, chosen: Sequence[Layer], fits: IntegerFits, kind: str
) -> tuple[tuple[QuantizedLayer, ...], tuple[str, ...], int]:
    """Write the file with these matrices in a type, all or nothing; returns as `write_packed`."""
    if checkpoint.others:  # their names tell loaders what belongs together, and would not be those of this one
        raise InvalidValueError(
            "model", "is one file of several that are a model", "merge them first: llama-gguf-split"
        )
    source = SourceFiles(files_behind(checkpoint))
    rows = []
    with place.staged() as staging:
        with GgufWriter(checkpoint, staging / _FILE, kind, {layer.file_name: layer for layer in chosen}) as writer:
            for layer in chosen:
                row, integers = fits.fitted(layer)
                writer.write(layer.file_name, _blocks(integers, fits.bits).reshape(-1).data)
                rows.append(row)
        size = (staging / _FILE).stat().st_size
        left = copy_companions(checkpoint, staging)
        source.check()
        mark_output(staging, "quantize", checkpoint, format=kind, layers=[row.name for row in rows])
    return tuple(rows), left, size


def _blocks(integers: Integers, bits: int) -> NDArray[np.uint8]:
    """Blocks as ggml reads them: a scale in float16, and 32 codes.

    Codes of four bits are two in a byte, the first 16 in the low halves; those of eight are signed.
    """
    codes = integers.codes.reshape(-1, BLOCK)
    scales = np.ascontiguousarray(integers.scales, "<f2").reshape(-1, 1).view(np.uint8)
    held = codes[:, :16] | codes[:, 16:] << 4 if bits == 4 else codes ^ 0x80  # less 128, in two's complement
    return np.concatenate([scales, held], axis=1)
