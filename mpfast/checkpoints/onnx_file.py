"""Reader for the initialisers and constants of an ONNX model. Needs the onnx package."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.checkpoints.base import Role, TensorInfo
from mpfast.checkpoints.onnx_graph import tensors_of
from mpfast.checkpoints.quantised.group import Group
from mpfast.support import CheckpointError, is_shape, package_missing, plain_name, short, storage_bits

__all__ = ["OnnxFile"]

# Types that NumPy lacks are handed out as their bits.
_BITS = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}
_BELOW_A_BYTE = ("int4", "uint4", "float4", "int2", "uint2")


class OnnxFile:
    """The initialisers and constants of one ``.onnx`` file, those of subgraphs and functions among them.

    Tensors stored beside it are memory-mapped.

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
            raise package_missing(f"{path}: reading an ONNX model", "onnx", extra="onnx") from None
        self._path = path
        with path.open("rb") as stream:
            content = stream.read()
        try:
            model = onnx.load_model_from_string(content)
        except Exception as error:  # protobuf's own errors, of no common type
            raise CheckpointError(f"{path}: no valid ONNX model: {error}", offset=0) from None
        found = tensors_of(model)
        if found.repeated:
            name = found.repeated[0]
            raise CheckpointError(f"{path}: tensor {short(name)} occurs twice", tensor=name)
        self.config: Mapping[str, Any] | None = None
        self.others = tuple(found.others)
        self._tensors = found.tensors
        self._quantised = found.quantised
        self._infos = {name: self._info(name, tensor, found.roles.get(name)) for name, tensor in found.tensors.items()}

    def _info(self, name: str, tensor: Any, role: Role | None) -> TensorInfo:
        try:
            dtype = np.dtype(self._types(tensor.data_type))
        except Exception:  # KeyError or another, by onnx's version
            raise CheckpointError(
                f"{self._path}: tensor {short(name)} has the unknown data type {tensor.data_type}", tensor=name
            ) from None
        shape = tuple(tensor.dims)
        if not is_shape(shape) or storage_bits(shape, 8 * dtype.itemsize) is None:
            raise CheckpointError(
                f"{self._path}: tensor {short(name)} has the shape {short(shape)}, which no array has", tensor=name
            )
        known = role if len(shape) > 1 or (role is not None and role.kind == "companion") else None
        return TensorInfo(name, shape, dtype.name, known)

    @property
    def source(self) -> str:
        """The path of the file."""
        return str(self._path)

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """All initialisers and constants in the order of the graphs."""
        return tuple(self._infos.values())

    def quantised_groups(self) -> Iterator[Group]:
        """Yield the packed weights with what belongs to them, as nodes say it; of names nothing is concluded."""
        for name, taken in self._quantised.items():
            if len(self._infos[name].shape) < 2:
                continue  # a bias
            parts = {"": self._infos[name], **{word: self._infos[part] for word, part in taken.parts.items()}}
            settings = {"operator": taken.operator, "attributes": taken.attributes, "unknown": taken.unknown}
            yield Group(self, name, "", parts, "ONNX", settings, {}, source="ONNX node")

    def packed(self, name: str) -> NDArray[np.uint8]:
        """Return the bytes of a tensor of integers below a byte, as many as there are; see `Checkpoint.read`."""
        tensor, info = self._tensors[name], self._infos[name]
        needed = -(-info.size * int(re.sub(r"\D", "", info.dtype)) // 8)
        if tensor.external_data:
            return self._mapped(tensor, info, np.dtype(np.uint8), (needed,))
        # A byte in each of 32 bits, where the file does not hold the bytes themselves.
        held = np.frombuffer(tensor.raw_data, np.uint8) if tensor.raw_data else np.array(tensor.int32_data, np.int32)
        if held.shape != (needed,):
            raise CheckpointError(
                f"{self._path}: tensor {short(name)} of {info.dtype} and shape {info.shape} holds {len(held)} bytes",
                tensor=name,
            )
        return held.astype(np.uint8, copy=False)

    def read(self, name: str) -> NDArray[Any]:
        """Return one of them; see `Checkpoint.read`."""
        tensor = self._tensors[name]
        info = self._infos[name]
        if tensor.external_data:
            return self._external(tensor, info)
        try:
            array = np.asarray(self._helper.to_array(tensor))
        except MemoryError:
            raise
        except Exception as error:  # onnx raises whatever NumPy or protobuf does
            raise CheckpointError(f"{self._path}: tensor {short(name)} is damaged: {error}", tensor=name) from None
        if array.shape != info.shape:
            raise CheckpointError(
                f"{self._path}: tensor {short(name)} of shape {info.shape} holds data of shape {array.shape}",
                tensor=name,
            )
        return array.view(_BITS[info.dtype]) if info.dtype in _BITS else array

    def _external(self, tensor: Any, info: TensorInfo) -> NDArray[Any]:
        try:
            dtype = np.dtype(_BITS.get(info.dtype, info.dtype))
        except TypeError:  # a type that NumPy lacks
            dtype = np.dtype(object)
        if dtype.hasobject or info.dtype.startswith(_BELOW_A_BYTE):
            raise CheckpointError(
                f"{self._path}: tensor {short(info.name)} is external data of type {info.dtype}, which is not read",
                tensor=info.name,
            )
        return self._mapped(tensor, info, dtype, info.shape)

    def _mapped(self, tensor: Any, info: TensorInfo, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """External data as entries of a type, which may be the bytes alone."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        file = self._path.parent / plain_name(entries.get("location"), self._path, info.name)
        try:
            offset = _count(entries.get("offset", "0"), "offset")
            needed = math.prod(shape) * dtype.itemsize
            if _count(entries.get("length", str(needed)), "length") != needed:
                raise ValueError(f"{info.dtype} of shape {info.shape} needs {needed} bytes, not {entries['length']}")
            there = file.stat().st_size
            if offset + needed > there:
                raise ValueError(f"bytes {offset} to {offset + needed} are needed, the file has {there}")
            if not file.is_file():
                raise ValueError("it is no regular file")
            if needed == 0:
                return np.empty(shape, dtype)
            return np.memmap(file, dtype, "r", offset, shape).view(np.ndarray)
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{self._path}: tensor {short(info.name)} cannot be read from {file.name}: {error}", tensor=info.name
            ) from None

    def prefetch(self, name: str) -> None:
        """Do nothing: the file is in memory."""

    def release(self, name: str) -> None:
        """Do nothing: every `read` returns an array of its own."""


def _count(text: str, what: str) -> int:
    # Nineteen digits fit 64 bits; int() by itself takes signs, blanks, underscores and digits of any script.
    if not re.fullmatch("[0-9]{1,19}", text):
        raise ValueError(f"the {what} {short(text)} is no number of bytes")
    return int(text)
