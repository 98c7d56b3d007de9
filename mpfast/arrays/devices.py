"""Where arrays live: the CUDA backend, when this build has one, and matrices in GPU memory.

The backend is a native module of its own, ``mpfast._cuda``; it is loaded when the first GPU array is handed in.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from mpfast.arrays.array_interfaces import CudaRecord
from mpfast.support import InvalidTypeError, InvalidValueError

if TYPE_CHECKING:
    from mpfast import _cuda


__all__ = [
    "Device",
    "address_of",
    "cuda_backend",
    "cuda_status",
    "device_matrix",
    "device_names",
    "empty_like",
    "has_cuda_backend",
    "is_on_gpu",
    "parse_device",
]

_KDLCUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged


class NoCudaError(ImportError):
    """There is no CUDA backend in this build."""


def cuda_backend() -> Any:
    """Return the native CUDA module; `NoCudaError` when this build has none."""
    try:
        return importlib.import_module("mpfast._cuda")
    except ModuleNotFoundError as error:
        raise NoCudaError(
            "this build of mpfast has no CUDA backend: it was built without nvcc, or with MPFAST_CUDA=off "
            "(MPFAST_CUDA=on insists)"
        ) from error


def has_cuda_backend() -> bool:
    """Whether this build has the CUDA module; it may still find no GPU."""
    return "mpfast._cuda" in sys.modules or importlib.util.find_spec("mpfast._cuda") is not None


def cuda_status() -> str:
    """Say in one line which GPUs can be used, or why there are none."""
    try:
        cuda = cuda_backend()
    except ImportError as error:
        return str(error)
    count, why = cuda.device_count()
    if count == 0:
        return f"built, not usable here: {why}"
    names = [f"cuda:{i} {cuda.describe(i)[0]}" for i in range(count)]
    return f"{', '.join(names)}; driver for CUDA {cuda.driver_version()}"


class Device:
    """One GPU, as named by ``device="cuda:1"``."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.backend = cuda_backend()

    def __str__(self) -> str:
        return f"cuda:{self.index}"


def parse_device(device: Any) -> Device | None:
    """Return the GPU that ``device`` names; None for the host.

    Raises
    ------
    ValueError
        Not a device, or none that can be used here.
    """
    if device is None or str(device) == "cpu":  # torch.device("cpu") too
        return None
    found = re.fullmatch(r"cuda(?::(\d+))?", str(device))
    if not found:
        raise InvalidValueError("device", f"must be None, 'cpu', 'cuda' or 'cuda:N', not {device!r}")
    try:
        count, why = cuda_backend().device_count()
    except NoCudaError as error:
        raise InvalidValueError(f"device={str(device)!r}", f"cannot be used: {error}") from error
    index = int(found[1] or 0)
    if index >= count:
        reason = why if count == 0 else f"there are {count} GPUs"
        raise InvalidValueError(f"device={str(device)!r}", f"cannot be used: {reason}")
    return Device(index)


def device_names(device: Any) -> tuple[str, ...]:
    """Return the GPUs that ``device`` names, every one for ``"cuda"``; none for the host. Errors as `parse_device`."""
    first = parse_device(device)
    if first is None:
        return ()
    if str(device) != "cuda":
        return (str(first),)
    count, _ = first.backend.device_count()
    return tuple(f"cuda:{i}" for i in range(count))


def is_on_gpu(W: Any) -> bool:
    """Whether W is an array in the memory of a CUDA device; nothing is imported and nothing copied."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(W, torch.Tensor):
        return bool(W.device.type == "cuda")
    try:
        if hasattr(W, "__cuda_array_interface__"):
            return True
        return hasattr(W, "__dlpack_device__") and int(W.__dlpack_device__()[0]) in _KDLCUDA
    except Exception:  # whatever a foreign object raises; whoever views it on the host says so
        return False


def device_matrix(W: Any, backend: Any, *, name: str = "W") -> _cuda.Matrix:
    """View a 2-D GPU array of a supported type, ready on the stream its framework works on.

    Raises
    ------
    ValueError, TypeError
        What W says about its memory is wrong or not supported; the message names `name` and the field.
    """
    if hasattr(W, "__dlpack__"):
        handle = _current_stream(W)
        try:
            # DLPack calls the legacy default stream 1.
            capsule = _detached(W).__dlpack__(stream=handle or 1)
            matrix: _cuda.Matrix = backend.Matrix.from_dlpack(capsule, handle)
        except (ImportError, MemoryError):
            raise
        except Exception as error:  # whatever a foreign object raises, or what is wrong with its tensor
            kind = InvalidValueError if isinstance(error, ValueError) else InvalidTypeError
            raise kind(name, f"cannot be read through DLPack: {error}") from error
        return matrix
    record = CudaRecord.of(W, name)
    described: _cuda.Matrix = backend.Matrix(
        address=record.address,
        dtype=record.dtype,
        shape=record.shape,
        strides=record.strides,
        device=backend.device_of(record.address),
        stream=record.stream,
        owner=W,
    )
    return described


def address_of(array: Any) -> int:
    """Where a PyTorch tensor, a CuPy array or, for the emulated device, a NumPy array begins in memory."""
    if hasattr(array, "data_ptr"):
        return int(array.data_ptr())
    return int(array.ctypes.data if hasattr(array, "ctypes") else array.data.ptr)


def empty_like(W: Any, *, mask: bool = False) -> Any:
    """Return an array without gaps of the shape of W, in its framework and on its device, that nobody has written to.

    Parameters
    ----------
    W
        PyTorch tensor, CuPy array or, for the emulated device, NumPy array.
    mask
        Of booleans, not of the type of W.

    Raises
    ------
    TypeError
        W is of another framework.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(W, torch.Tensor):
        return torch.empty(tuple(W.shape), dtype=torch.bool if mask else W.dtype, device=W.device)
    dtype = np.dtype(np.bool_) if mask else W.dtype
    if type(W).__module__.split(".")[0] == "cupy":
        with W.device:
            return sys.modules["cupy"].empty(W.shape, dtype=dtype)
    if isinstance(W, np.ndarray):
        return np.empty(W.shape, dtype=dtype)
    raise InvalidTypeError(
        "",
        f"results on a GPU are made for PyTorch and CuPy arrays, not {type(W).__name__}",
        "pass cupy.from_dlpack(...) of it",
    )


def _detached(W: Any) -> Any:
    torch = sys.modules.get("torch")
    return W.detach() if torch is not None and isinstance(W, torch.Tensor) else W


def _current_stream(W: Any) -> int:
    """Handle of the stream that the caller's framework works on; 0 is the default stream."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(W, torch.Tensor):
        return int(torch.cuda.current_stream(W.device).cuda_stream)
    if type(W).__module__.split(".")[0] == "cupy":
        with W.device:
            return int(sys.modules["cupy"].cuda.get_current_stream().ptr)
    return 0
