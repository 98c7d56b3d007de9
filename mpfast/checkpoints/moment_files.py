"""The file that keeps second moments of the inputs of layers.

It is a safetensors file that any reader opens. Modules that have been handed the same inputs share a sum. Tensor
``module.i``, float64, is the sum of ``x x^T`` over part ``i`` of the inputs of ``module``, the first of those that
share it; a part of a tensor that is a matrix by itself stands for a module, with its number or name in brackets. The
file's metadata gives, as JSON, ``sums`` (for each sum the modules, the rows of each part and the number of calls),
``weights`` (from module to the weight whose inputs these are), ``options`` and ``model``, with the type and hash of
every weight that was watched.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.checkpoints.base import TensorInfo
from mpfast.checkpoints.moments import InputSum, Moments, WatchedWeight, weight_of
from mpfast.checkpoints.safetensors import SafetensorsFile
from mpfast.checkpoints.safetensors_writer import SafetensorsWriter
from mpfast.checkpoints.targets import check_target
from mpfast.support import CheckpointError, Record, check_path, front_door, parse_json, replaced_file

__all__ = ["MomentFile", "is_moment_file", "write_moments"]

FORMAT = "mpfast.second_moments/1"


def write_moments(
    path: str | os.PathLike[str],
    sums: Sequence[InputSum[NDArray[np.float64]]],
    options: Mapping[str, Any],
    model: Mapping[str, Any],
) -> None:
    """Write a file of moments, atomically.

    Parameters
    ----------
    path
        The file.
    sums
        With symmetric parts.
    options
        What the moments were collected with.
    model
        What is known of the model that was watched.

    Raises
    ------
    FileExistsError
        There is a file that holds something else than moments.
    """
    check_target(path, is_ours=is_moment_file)
    tensors, arrays = [], []
    for found in sums:
        for number, part in enumerate(found.parts):
            tensors.append(TensorInfo(f"{found.modules[0]}.{number}", part.shape, "float64"))
            arrays.append(part)
    listed = [{"modules": found.modules, "rows": found.rows, "calls": found.calls} for found in sums]
    weights = {name: weight_of(name) for found in sums for name in found.modules}
    documents = {"sums": listed, "weights": weights, "options": dict(options), "model": dict(model)}
    metadata = {"format": FORMAT, **{key: json.dumps(value) for key, value in documents.items()}}
    with replaced_file(path) as temporary, SafetensorsWriter.create(temporary, tensors, metadata) as writer:
        for info, array in zip(tensors, arrays, strict=True):
            writer.write(info.name, array)


def is_moment_file(path: Path) -> bool:
    """Whether a file says that it holds second moments."""
    try:
        return SafetensorsFile(path).metadata.get("format") == FORMAT
    except ValueError:
        return False


class MomentFile(Moments[NDArray[np.float64]]):
    """The second moments of a file that `SecondMoments.save` or ``mpfast moments`` wrote; needs no PyTorch.

    A mapping from module name to float64 array. Sums stay in the file; of the means only the last one is kept.

    Parameters
    ----------
    path : str or path-like
        The file.

    Raises
    ------
    CheckpointError
        The file holds no second moments, or is damaged.

    Attributes
    ----------
    options : Record
        What the moments were collected with: ``block``, ``layout``, ``share``, ``seed``, ``folds``.
    model : Record
        Of the model that was watched: ``source``, its path or name; ``source_hash``, as
        `mpfast.checkpoints.content_sample_hash` gives it, None where that is not known; ``watched``, what
        `watched_weights` returns.
    weights : dict of str to str
        From module to the name of the weight that multiplies these inputs.
    """

    @front_door
    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = check_path(path, "path")
        self._file = SafetensorsFile(path)
        if self._file.metadata.get("format") != FORMAT:
            raise CheckpointError(f"{self._path}: these are no second moments: its metadata does not say {FORMAT}")
        self.options = Record(self._said("options", dict), f"{self._path}: options")
        self.model = Record(self._said("model", dict), f"{self._path}: model")
        self.block = self.options.integer("block", 1) if self.options.has("block") else None
        self._sums = [self._read(Record(item, f"{self._path}: sums")) for item in self._said("sums", list)]
        self._by_module = {name: found for found in self._sums for name in found.modules}
        if len(self._by_module) != sum(len(found.modules) for found in self._sums):
            raise CheckpointError(f"{self._path}: a module has two sums")
        weights = Record(self._said("weights", dict), f"{self._path}: weights")
        self.weights = {name: weights.text(name) for name in self._by_module}
        self._watched = self._read_watched()
        self._last: InputSum[NDArray[np.float64]] | None = None

    def _read_watched(self) -> dict[str, WatchedWeight]:
        if not self.model.has("watched"):
            return {}
        record, found = self.model.record("watched"), {}
        for name in record:
            texts = record.texts(name)
            if len(texts) != 2:
                raise record.refuse(name, "a type and a hash")
            found[name] = WatchedWeight(*texts)
        return found

    def watched_weights(self) -> dict[str, WatchedWeight]:
        """Type and hash of the weights of the modules when the file was written, as far as they are known."""
        return {name: found for name, found in self._watched.items() if name in self._by_module}

    def _said(self, key: str, kind: type) -> Any:
        try:
            value = parse_json(self._file.metadata.get(key, ""))
        except ValueError as error:
            raise CheckpointError(f"{self._path}: {key} in its metadata is damaged: {error}") from None
        if not isinstance(value, kind):
            raise CheckpointError(f"{self._path}: {key} in its metadata must be of another form")
        return value

    def _read(self, record: Record) -> InputSum[NDArray[np.float64]]:
        modules, rows = list(record.texts("modules")), record.get("rows")
        if not modules:
            raise record.refuse("modules", "a list of names")
        if not isinstance(rows, list) or not rows or not all(type(count) is int and count > 0 for count in rows):
            raise record.refuse("rows", "a list of positive integers")
        parts = [self._part(f"{modules[0]}.{number}") for number in range(len(rows))]
        if len({part.shape for part in parts}) != 1:
            raise CheckpointError(f"{self._path}: the parts of {modules[0]!r} differ in shape")
        return InputSum(modules, rows, parts, record.integer("calls"))

    def _part(self, name: str) -> NDArray[np.float64]:
        try:
            part = self._file.read(name)
        except KeyError:
            raise CheckpointError(f"{self._path}: lacks the tensor {name!r}") from None
        if part.dtype != np.float64 or part.ndim not in (2, 3) or part.shape[-1] != part.shape[-2] or not part.size:
            raise CheckpointError(f"{self._path}: tensor {name!r} is no second moment", tensor=name)
        return part

    @property
    def sums(self) -> tuple[InputSum[NDArray[np.float64]], ...]:
        """What is in the file; the parts are views of it."""
        return tuple(self._sums)

    def _sum_of(self, name: str) -> InputSum[NDArray[np.float64]]:
        return self._by_module[name]

    def _whole(self, name: str) -> NDArray[np.float64]:
        found = self._by_module[name]
        if self._last is not None and self._last is not found:
            self._last.mean = None
        self._last = found
        mean = super()._whole(name)
        mean.flags.writeable = False  # others are given the same array
        return mean

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_module)

    def __len__(self) -> int:
        return len(self._by_module)
