"""The bits of a tensor of any framework, as files hold them: little-endian or the machine's order, row after row."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import QuantisedArray, as_numpy, native
from mpfast.checkpoints.base import Checkpoint, TensorInfo
from mpfast.checkpoints.safetensors import METADATA_KEY, SafetensorsFile, element_code
from mpfast.checkpoints.sharded import ShardedSafetensors
from mpfast.support import InvalidTypeError, InvalidValueError, UnreadableArrayError, is_text, short

__all__ = [
    "as_stored",
    "check_writable",
    "content_hash",
    "content_hashes",
    "overall_hash",
    "shards_of",
    "stored",
    "stored_bits",
    "stored_chunks",
]

# What is handed on at a time: a copy of a large tensor is never in memory as a whole.
_CHUNK_BYTES = 16 << 20


def stored(tensor: Any, name: str) -> NDArray[Any]:
    """Return a tensor of any framework in NumPy, in the machine's byte order and aligned.

    Types that NumPy lacks (bfloat16, float8) come as unsigned integers that hold their bits.

    Raises
    ------
    InvalidTypeError
        Entries that no array of numbers holds: text, objects, quantised tensors of PyTorch; or that fails.
    """
    if isinstance(tensor, np.ndarray) and not isinstance(tensor, np.ma.MaskedArray):
        array = np.asarray(tensor)
    elif "torch" in sys.modules and isinstance(tensor, sys.modules["torch"].Tensor):
        array = _of_torch(tensor, name)
    else:
        try:
            array, _ = as_numpy(tensor, name=name)
        except UnreadableArrayError:
            raise
        except TypeError:  # no floating-point numbers: indices, masks
            array = np.asarray(tensor)
    if array.dtype.isbuiltin == 2:  # registered by ml_dtypes: bfloat16, float8
        array = np.ascontiguousarray(array).view(f"u{array.itemsize}")
    if array.dtype.kind not in "biufc":
        raise InvalidTypeError(name, f"has entries of type {array.dtype}, which are no numbers", "leave it out")
    return native(array)


def _of_torch(tensor: Any, name: str) -> NDArray[Any]:
    torch = sys.modules["torch"]
    if tensor.is_quantized:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise InvalidTypeError(name, f"is quantised ({kind})", "pass its int_repr() or dequantize() instead")
    if str(tensor.dtype) in ("torch.float64", "torch.float32", "torch.float16", "torch.bfloat16"):
        if tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.data_ptr() % tensor.element_size():
            tensor = tensor.detach().clone()
        return as_numpy(tensor, name=name)[0]
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        # As of floating-point tensors, in the same words.
        as_numpy(tensor.to(torch.float32) if tensor.device.type != "meta" else tensor, name=name)
    tensor = tensor.detach().resolve_conj().resolve_neg()
    try:
        return np.asarray(tensor.numpy())
    except (TypeError, RuntimeError):  # a type that NumPy lacks
        pass
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(tensor.element_size())
    if bits is None:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise InvalidTypeError(name, f"has entries of type {kind}, which are not read", "leave it out")
    return np.asarray(tensor.contiguous().view(bits).numpy())


def shards_of(checkpoint: Checkpoint) -> list[SafetensorsFile]:
    """Return the safetensors files that a checkpoint consists of; none where it is something else."""
    if isinstance(checkpoint, SafetensorsFile):
        return [checkpoint]
    return checkpoint.shards if isinstance(checkpoint, ShardedSafetensors) else []


def as_stored(checkpoint: Checkpoint) -> Checkpoint:
    """Return what a checkpoint is read from, where it shows that in another form; else the given one."""
    found: Checkpoint = getattr(checkpoint, "stored", checkpoint)
    return found


def stored_bits(checkpoint: Checkpoint, name: str) -> memoryview:
    """Return the bytes of one tensor of a checkpoint as a safetensors file holds them; errors as `stored`."""
    holder = _holder(checkpoint, name)
    if isinstance(holder, SafetensorsFile | ShardedSafetensors):
        return holder.raw(name)
    return _bytes(stored(holder.read(name), name))


def stored_chunks(checkpoint: Checkpoint, name: str) -> Iterator[memoryview]:
    """Yield `stored_bits` in pieces, in order; of a quantised tensor no more than a piece is decoded at a time."""
    if not shards_of(_holder(checkpoint, name)):
        tensor = checkpoint.read(name)
        if isinstance(tensor, QuantisedArray):
            for _, numbers in tensor.decoded_panels():
                yield _bytes(numbers)
            return
    whole = stored_bits(checkpoint, name)
    for at in range(0, whole.nbytes, _CHUNK_BYTES):
        yield whole[at : at + _CHUNK_BYTES]


def _holder(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """Return what has the bits of a tensor: beside quantised weights that are decoded, what these are read from."""
    find: Callable[[str], Checkpoint] | None = getattr(checkpoint, "holder_of", None)
    return checkpoint if find is None else find(name)


def _bytes(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def content_hash(entries: NDArray[Any]) -> str:
    """Return the hash of an array's bytes in row-major order, as a budget gives it."""
    return _hash(_bytes(entries))


def _hash(content: memoryview) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def content_hashes(checkpoint: Checkpoint, known: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield name and content hash of every tensor; those that are known are not read again."""
    for info in checkpoint.tensors:
        if info.name in known:
            yield info.name, known[info.name]
            continue
        state = hashlib.sha256()
        for chunk in stored_chunks(checkpoint, info.name):
            state.update(chunk)
        yield info.name, f"sha256:{state.hexdigest()}"
        checkpoint.release(info.name)


def overall_hash(tensors: tuple[TensorInfo, ...], hashes: Mapping[str, str]) -> str:
    """Return the hash of a whole checkpoint: of its tensors' names, types, shapes and contents, in any order."""
    state = hashlib.sha256()
    for info in sorted(tensors, key=lambda info: info.name):
        state.update(f"{info.name}\0{info.dtype}\0{info.shape}\0{hashes[info.name]}\n".encode(errors="surrogatepass"))
    return f"sha256:{state.hexdigest()}"


def check_writable(checkpoint: Checkpoint) -> None:
    """Raise unless a safetensors file can hold every tensor of a checkpoint, before any work is done.

    Raises
    ------
    InvalidValueError
        A type or a name that the format lacks; the message says of which tensor.
    """
    for info in checkpoint.tensors:
        if info.name == METADATA_KEY:
            raise InvalidValueError(
                "", f"a tensor is called {METADATA_KEY}, which safetensors files keep for themselves", "rename it"
            )
        if not is_text(info.name):
            raise InvalidValueError("", f"the name {short(info.name)} of a tensor is no valid Unicode", "rename it")
        try:
            element_code(info.dtype)
        except ValueError as error:
            raise InvalidValueError("", f"{info.name}: {error}", "leave it out, or cast it, before") from None
