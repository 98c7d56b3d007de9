"""Reader for the initialisers of an ONNX model. Needs the onnx package."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.checkpoints.base import TensorInfo
from mpfast.checkpoints.names import plain_name
from mpfast.errors import CheckpointError

__all__ = ["OnnxFile"]

# Types that NumPy lacks are handed out as their bits.
_BITS = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}


class OnnxFile:
    """The initialisers of one ``.onnx`` file; tensors stored beside it are memory-mapped.

    Raises
    ------
    ImportError
        onnx is not installed.
    CheckpointError
        The file is malformed.
    """

    def __init__(self, path: Path) -> None:
        try:
            onnx = importlib.import_module("onnx")
            self._helper = importlib.import_module("onnx.numpy_helper")
            self._types = importlib.import_module("onnx.helper").tensor_dtype_to_np_dtype
        except ImportError:
            raise ImportError(f"{path}: reading an ONNX model needs onnx: pip install 'mpfast[onnx]'") from None
        self._path = path
        try:
            model = onnx.load(str(path), load_external_data=False)
        except Exception as error:  # protobuf's own errors, of no common type
            raise CheckpointError(f"{path}: no valid ONNX model: {error}", offset=0) from None
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._infos = tuple(
            TensorInfo(name, tuple(tensor.dims), np.dtype(self._types(tensor.data_type)).name)
            for name, tensor in self._tensors.items()
        )

    @property
    def source(self) -> str:
        """The path of the file."""
        return str(self._path)

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """All initialisers in the order of the graph."""
        return self._infos

    def read(self, name: str) -> NDArray[Any]:
        """Return one initialiser; see `Checkpoint.read`."""
        tensor = self._tensors[name]
        info = next(info for info in self._infos if info.name == name)
        if tensor.external_data:
            return self._external(tensor, info)
        try:
            array = np.asarray(self._helper.to_array(tensor))
        except Exception as error:  # onnx raises whatever NumPy or protobuf does
            raise CheckpointError(f"{self._path}: tensor {name!r} is damaged: {error}", tensor=name) from None
        return array.view(_BITS[info.dtype]) if info.dtype in _BITS else array

    def _external(self, tensor: Any, info: TensorInfo) -> NDArray[Any]:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        file = self._path.parent / plain_name(entries.get("location"), self._path, info.name)
        dtype = np.dtype(_BITS.get(info.dtype, info.dtype))
        try:
            offset = int(entries.get("offset", 0))
            return np.memmap(file, dtype, "r", offset, info.shape).view(np.ndarray)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self._path}: tensor {info.name!r} cannot be read from {file.name}: {error}", tensor=info.name
            ) from None

    def prefetch(self, name: str) -> None:
        """Do nothing: the file is in memory."""

    def release(self, name: str) -> None:
        """Do nothing: every `read` returns an array of its own."""
