"""What foreign objects say about their memory, ``__array_interface__`` and ``__cuda_array_interface__``, checked.

Both protocols hand over an address and trust the reader with it: a wrong stride reads memory that belongs to others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpfast.support import (
    MAX_DIMENSIONS,
    InvalidTypeError,
    InvalidValueError,
    UnreadableArrayError,
    is_shape,
    short,
    storage_bits,
)

__all__ = ["CudaRecord", "HostRecord"]

_TYPESTR = re.compile(r"[<>|=]([a-zA-Z])([1-9][0-9]{0,3})")
_CUDA_TYPES = {"<f8": "float64", "<f4": "float32", "<f2": "float16"}
_MAX_ADDRESS = 2**64


@dataclass(frozen=True)
class CudaRecord:
    """A ``__cuda_array_interface__`` of a matrix, every field checked.

    Attributes
    ----------
    dtype : str
        "float64", "float32" or "float16".
    shape, strides : tuple of int
        Two each; strides count entries.
    address : int
        Where entry (0, 0) lies.
    stream : int
        Handle of the stream on which the entries are ready, 0 for the default one.
    """

    dtype: str
    shape: tuple[int, int]
    strides: tuple[int, int]
    address: int
    stream: int

    @classmethod
    def of(cls, W: Any, name: str) -> CudaRecord:
        """Read the interface of W; TypeError or ValueError name the field that is wrong."""
        said = _Interface(W, "__cuda_array_interface__", name)
        typestr = said.fields.get("typestr")
        if not isinstance(typestr, str) or typestr not in _CUDA_TYPES:
            raise InvalidTypeError(name, f"has the typestr {short(typestr)}", "float64, float32 or float16 is needed")
        if said.fields.get("mask") is not None:
            raise said.error("mask", "None: masked arrays are not read")
        size = int(typestr[2:])
        shape, strides = said.layout(size)
        if len(shape) != 2:
            raise InvalidValueError(name, f"must be 2-D, but has shape {shape}")
        if 0 in shape:
            raise InvalidValueError(name, f"is empty: its shape is {shape}")
        address = said.address(said.fields.get("data"))
        said.check_reach(address, *_reach(shape, strides, size))
        if address % size or any(stride % size for stride in strides):
            raise InvalidValueError(name, f"is not aligned to its {_CUDA_TYPES[typestr]} entries")
        stream = said.fields.get("stream")
        if stream is not None and (type(stream) is not int or not 0 < stream < _MAX_ADDRESS):
            raise said.error("stream", "None or a positive integer")
        # 1 is the legacy default stream.
        handle = 0 if stream in (None, 1) else int(stream)
        rows, cols = strides
        return cls(_CUDA_TYPES[typestr], (shape[0], shape[1]), (rows // size, cols // size), address, handle)


class HostRecord:
    """A checked snapshot of an object's ``__array_interface__`` that NumPy reads in the object's place.

    A snapshot, since a property may say something else the second time.
    """

    def __init__(self, owner: Any, interface: Mapping[str, Any]) -> None:
        self._owner = owner  # keeps the memory alive: NumPy's view refers to this object
        self.__array_interface__ = dict(interface)

    @classmethod
    def of(cls, W: Any, name: str) -> HostRecord:
        """Read the interface of W; TypeError or ValueError name the field that is wrong."""
        said = _Interface(W, "__array_interface__", name)
        typestr = said.fields.get("typestr")
        found = _TYPESTR.fullmatch(typestr) if isinstance(typestr, str) else None
        if found is None:
            raise said.error("typestr", "a type such as '<f4'")
        size = int(found[2]) * (4 if found[1] == "U" else 1)
        if said.fields.get("mask") is not None:
            raise said.error("mask", "None: masked arrays are not read")
        shape, strides = said.layout(size)
        below, above = _reach(shape, strides, size)
        interface = {"version": 3, "typestr": typestr, "shape": shape, "strides": strides}
        data: Any = said.fields.get("data")
        if isinstance(data, tuple):
            address = said.address(data, empty=0 in shape)
            said.check_reach(address, below, above)
            return cls(W, {**interface, "data": (address, True)})
        try:
            memory = memoryview(data).cast("B")
        except TypeError:
            raise said.error("data", "a pair of an address and a flag, or a contiguous buffer") from None
        offset = said.fields.get("offset", 0)
        if type(offset) is not int or not 0 <= offset + below <= offset + above <= memory.nbytes:
            raise InvalidValueError(
                name,
                f"reaches beyond its memory: shape {short(shape)} and strides {short(strides)} from offset "
                f"{short(offset)} in {memory.nbytes} bytes",
            )
        return cls(W, {**interface, "data": memory, "offset": offset})


class _Interface:
    """The fields that both protocols share."""

    def __init__(self, W: Any, attribute: str, name: str) -> None:
        try:
            fields = getattr(W, attribute)
        except Exception as error:
            raise UnreadableArrayError(f"{name}.{attribute}", f"cannot be read: {error}") from error
        self._where = f"{name}.{attribute}"
        if not isinstance(fields, Mapping):
            raise InvalidTypeError(self._where, f"must be a dictionary, not {short(fields)}")
        self.fields = dict(fields)

    def error(self, field: str, what: str) -> InvalidValueError:
        said = short(self.fields.get(field))
        return InvalidValueError(f"{self._where}: {field}", f"must be {what}, not {said}")

    def layout(self, size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return shape and strides, these in bytes and spelled out where the interface leaves them out."""
        shape = self.fields.get("shape")
        if not isinstance(shape, tuple) or not is_shape(shape):
            raise self.error("shape", f"a tuple of at most {MAX_DIMENSIONS} non-negative integers")
        if storage_bits(shape, 8 * size) is None:
            raise self.error("shape", "of a size that memory can hold")
        strides = self.fields.get("strides")
        if strides is None:
            steps = [size]
            for extent in reversed(shape[1:]):
                steps.append(steps[-1] * max(extent, 1))
            return shape, tuple(reversed(steps[: len(shape)]))
        if (
            not isinstance(strides, tuple)
            or len(strides) != len(shape)
            or not all(type(stride) is int and abs(stride) < 2**62 for stride in strides)
        ):
            raise self.error("strides", "None or a tuple of as many integers as shape has")
        return shape, strides

    def address(self, data: Any, *, empty: bool = False) -> int:
        if (
            not isinstance(data, tuple)
            or len(data) != 2
            or type(data[0]) is not int
            or not (0 if empty else 1) <= data[0] < _MAX_ADDRESS
        ):
            raise self.error("data", "a pair of a valid address and a flag")
        return int(data[0])

    def check_reach(self, address: int, below: int, above: int) -> None:
        if address + below < 0 or address + above > _MAX_ADDRESS or above - below >= 2**63:
            raise self.error("strides", "within the address space")


def _reach(shape: tuple[int, ...], strides: tuple[int, ...], size: int) -> tuple[int, int]:
    """First byte of an array and the one after its last, counted from its first entry."""
    if 0 in shape:
        return 0, 0
    steps = [(extent - 1) * stride for extent, stride in zip(shape, strides, strict=True)]
    return sum(min(step, 0) for step in steps), sum(max(step, 0) for step in steps) + size
