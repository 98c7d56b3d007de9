"""A checkpoint without its quantisation: plain tensors, as they are to be written, and what lies beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import Decoder, QuantisedArray, narrowed, widened
from mpfast.checkpoints.base import Checkpoint, NoTensor, TensorInfo
from mpfast.checkpoints.config_json import with_dtype, without_quantisation
from mpfast.checkpoints.quantised.reader import Dequantised
from mpfast.checkpoints.shard_index import WEIGHTS_FILE
from mpfast.checkpoints.sharded import INDEX_SUFFIX
from mpfast.checkpoints.tensor_bits import shards_of
from mpfast.support import InvalidValueError

__all__ = ["DENSE_TYPES", "DenseCopy", "dense_copy"]

#: Types that quantised weights are written in, by the short names of the command line.
DENSE_TYPES = {"bf16": "bfloat16"}
# What says how weights are quantised, beside the configuration.
_LEFT_OUT = dict.fromkeys(
    ("hf_quant_config.json", "quantize_config.json", "quant_config.json", "quantization_config.json"),
    "says how the weights were quantised",
)
# ComfyUI's mark of a file whose float8 weights have scales.
_MARKER = "scaled_fp8"


class DenseCopy:
    """What a checkpoint of quantised weights would be without: these in bfloat16, all others as they are.

    Scales and the like are gone, and the configuration does not speak of them. Nothing is decoded before it is read.

    Parameters
    ----------
    quantised : Dequantised
        The checkpoint.

    Raises
    ------
    InvalidValueError
        A quantised weight is in a format that is not read.

    Attributes
    ----------
    dtype : str
        What the quantised weights are rounded to.
    stored : Checkpoint
        As it is stored.
    files : dict of str to list of str
        The tensors of every file to write: those of the source's files that hold weights, or one.
    documents : dict of str to str
        Texts of the files beside the weights that are to have another.
    left_out : dict of str to str
        Names of those that are not wanted, and why; nothing where that need not be said.
    """

    dtype = "bfloat16"

    def __init__(self, quantised: Dequantised) -> None:
        self.stored = quantised.stored
        self._quantised = quantised
        self.others: tuple[NoTensor, ...] = quantised.others
        for name, why in quantised.refused.items():
            raise InvalidValueError("dequantize", f"is not possible: {name} {why}")
        infos = {}
        for name, weight in quantised.weights.items():
            decoder, known = weight.dense()
            infos[name] = TensorInfo(name, decoder.shape, self.dtype, known)
        parts = {part.name for weight in quantised.weights.values() for part in weight.group.parts.values()}
        self._tensors = tuple(
            infos.get(info.name, info)
            for info in quantised.tensors
            if info.name in infos or (info.name not in parts and info.name.rpartition(".")[2] != _MARKER)
        )
        self.files = self._files()
        self.config: Mapping[str, Any] | None = None
        self.documents: dict[str, str] = {}
        count = len(infos)
        what = "1 weight that is" if count == 1 else f"{count:,} weights that are"
        self._notes = [f"written in {self.dtype}: {what} quantised in the source"]
        self._nonfinite: dict[str, None] = {}
        if quantised.config is not None:
            self.config = self._new_config(quantised.config)
        # An index of these files is written with them.
        self.left_out = {**_LEFT_OUT, f"model{INDEX_SUFFIX}": ""}
        if quantised.source.endswith(INDEX_SUFFIX):
            self.left_out[Path(quantised.source).name] = ""

    def _new_config(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The configuration of what is written; where it is another, its text is to be written, too."""
        unpacked = without_quantisation(config)
        new = with_dtype(unpacked, self.dtype)
        if unpacked != config:
            self._notes.append("config.json: no longer says that the weights are quantised")
        if new != unpacked:
            self._notes.append(f"config.json: says that the weights are {self.dtype}")
        if new != config:
            self.documents["config.json"] = json.dumps(new, indent=2, ensure_ascii=False) + "\n"
        return new

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth saying of that, also of the numbers that were read so far."""
        found = list(self._nonfinite)
        if not found:
            return tuple(self._notes)
        which = found[0] if len(found) == 1 else f"{len(found)} weights ({found[0]}, ...)"
        return (*self._notes, f"{which}: NaN or infinite in the source, and here")

    def _files(self) -> dict[str, list[str]]:
        home = {name: shard.path.name for shard in shards_of(self.stored) for name in shard.spans}
        found: dict[str, list[str]] = {}
        for info in self._tensors:
            weight = self._quantised.weights.get(info.name)
            stored = info.name if weight is None else weight.group.info.name
            found.setdefault(home.get(stored, WEIGHTS_FILE), []).append(info.name)
        if len(found) == 1 < len(set(home.values())):  # the one that is left of several has no number
            (names,) = found.values()
            return {WEIGHTS_FILE: names}
        return found

    @property
    def source(self) -> str:
        """As of what is stored."""
        return self.stored.source

    @property
    def shards(self) -> list[Checkpoint]:
        """What the tensors come from."""
        return [self.stored]

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """All tensors that are written, in the order of the checkpoint."""
        return self._tensors

    def read(self, name: str) -> Any:
        """Return one tensor: of what was quantised a `QuantisedArray` of bfloat16, of any other what is stored."""
        weight = self._quantised.weights.get(name)
        if weight is None:
            return self.stored.read(name)
        return QuantisedArray(_Rounded(weight.dense()[0], name, self._nonfinite))

    def holder_of(self, name: str) -> Checkpoint:
        """As of `Dequantised`."""
        return self if name in self._quantised.weights else self.stored

    def prefetch(self, name: str) -> None:
        """Begin to read a tensor."""
        self._quantised.prefetch(name)

    def release(self, name: str) -> None:
        """Give the memory of a tensor back."""
        self._quantised.release(name)


@dataclass(frozen=True)
class _Rounded:
    """The numbers of another decoder, rounded to bfloat16; where some are not finite, the name is noted."""

    decoder: Decoder
    name: str
    nonfinite: dict[str, None]
    dtype: str = field(default="bfloat16", init=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.decoder.shape

    @property
    def stored(self) -> str:
        return self.decoder.stored

    def rows(self, matrix: int, rows: slice) -> NDArray[np.float32]:
        numbers = self.decoder.rows(matrix, rows)
        if not np.isfinite(numbers).all():
            self.nonfinite[self.name] = None
        return numbers if self.decoder.dtype == "bfloat16" else widened(narrowed(numbers))

    def rounding(self, matrix: int, rows: slice) -> float | None:
        return self.decoder.rounding(matrix, rows)


def dense_copy(checkpoint: Checkpoint, dtype: Any) -> Checkpoint:
    """Return what a checkpoint would be without its quantisation; errors as `DenseCopy`.

    Raises
    ------
    InvalidValueError
        No weight is quantised, the type is none of `DENSE_TYPES`, or the checkpoint is a GGUF file.
    """
    if dtype not in DENSE_TYPES.values():
        raise InvalidValueError("dequantize", f"must be {' or '.join(map(repr, DENSE_TYPES.values()))}, not {dtype!r}")
    if any(info.stored for info in checkpoint.tensors) and not isinstance(checkpoint, Dequantised):
        fact = "is not there for GGUF, whose names are not those that other libraries load"
        raise InvalidValueError("dequantize", fact, "convert it by its own tools")
    if not isinstance(checkpoint, Dequantised):
        raise InvalidValueError("dequantize", "has nothing to do: no weight of the model is quantised")
    return DenseCopy(checkpoint)
