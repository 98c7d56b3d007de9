"""Reports of layers kept on disk under a hash of what they were computed from."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import as_numpy
from mpfast.checkpoints import Layer
from mpfast.models.layer_json import layer_from_json, layer_to_json
from mpfast.models.layer_report import LayerReport
from mpfast.support import write_text_atomically

__all__ = ["LayerCache"]

CHUNK_ROWS = 64


class LayerCache:
    """A directory of reports, one file each. Damaged files count as missing; any number of processes may share it.

    Parameters
    ----------
    directory : path
        Made if it does not exist.
    options : list
        What a report depends on besides the matrix and its name.
    """

    def __init__(self, directory: str | os.PathLike[str], options: list[Any]) -> None:
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._options = json.dumps([*options, metadata.version("mpfast")])

    def key(self, layer: Layer, matrix: Any) -> str | None:
        """Hash a matrix with its name, type and the options; None where its entries are not at hand (on a GPU, say)."""
        said = [self._options, layer.name, layer.kind, layer.dtype, layer.shape]
        if isinstance(matrix, _core.Matrix) and matrix.is_coded:
            code, codes, scales, width = matrix.owner
            return _hashed([*said, code, width], codes, scales)
        if isinstance(matrix, _core.Matrix):
            array = np.asarray(matrix.owner)
        else:
            try:
                array, _ = as_numpy(matrix, name=layer.name)
            except (TypeError, ValueError):
                return None
        return _hashed(said, array)

    def get(self, key: str, layer: Layer) -> LayerReport | None:
        """Return the report kept under a key, if there is one."""
        try:
            report = layer_from_json((self._directory / f"{key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return replace(report, tensor=layer.tensor, tensor_shape=layer.tensor_shape)

    def put(self, key: str, report: LayerReport) -> None:
        """Keep a report."""
        write_text_atomically(self._directory / f"{key}.json", layer_to_json(report))


def _hashed(said: list[Any], *arrays: NDArray[Any]) -> str:
    """Hash of what is said of arrays and of their entries."""
    state = hashlib.blake2b(digest_size=20)
    state.update(json.dumps(said).encode())
    for array in arrays:
        if array.flags.c_contiguous:
            state.update(array.reshape(-1).view(np.uint8).data)
        else:
            for first in range(0, len(array), CHUNK_ROWS):
                state.update(np.ascontiguousarray(array[first : first + CHUNK_ROWS]).data)
    return state.hexdigest()
