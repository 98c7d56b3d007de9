"""What the user hands in, as a view the core can read; what the core returns, in the user's framework.

Nothing is copied: a matrix is passed on by pointer, shape and strides. No framework is imported unless the object
already came from it.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays.array_interfaces import HostRecord
from mpfast.arrays.bfloat16 import narrowed, widened
from mpfast.arrays.quantised import QuantisedArray
from mpfast.support import InputError, InvalidTypeError, InvalidValueError, UnreadableArrayError, argument_called

__all__ = [
    "FLOATS",
    "LARGEST",
    "as_matrix",
    "as_numpy",
    "as_wide",
    "boolean_mask",
    "check_matrix",
    "dtype_error",
    "host_copy",
    "in_storage",
    "like",
    "like_stored",
    "native",
    "on_host",
    "raise_if_nonfinite",
    "refuse_masked",
    "wide",
]

FLOATS = ("float64", "float32", "float16", "bfloat16")
#: The largest numbers of the types to which double precision is rounded.
LARGEST = {
    "float32": float(np.finfo(np.float32).max),
    "float16": float(np.finfo(np.float16).max),
    "bfloat16": 2.0**128 - 2.0**120,
}


def as_matrix(W: Any, *, name: str = "W") -> _core.Matrix:
    """View a 2-D array of any framework.

    Parameters
    ----------
    W
        NumPy array, PyTorch CPU tensor, JAX CPU array, or anything with ``__dlpack__``, ``__array_interface__`` or the
        buffer protocol; float64, float32, float16 or bfloat16; any strides, read-only is fine. Nested lists are not
        accepted. A `QuantisedArray` is viewed as it is stored where the core reads its codes, and decoded elsewhere.
    name
        For error messages.

    Returns
    -------
    _core.Matrix
        Keeps the source alive.

    Raises
    ------
    ValueError
        Empty, not 2-D, on a GPU or a meta device, or misaligned.
    TypeError
        Not an array, or not of a supported type.
    """
    if isinstance(W, _core.Matrix):
        return W
    if isinstance(W, QuantisedArray):
        check_matrix(W.shape, "float32", name)
        if (coded := W.coded()) is not None:
            return coded
    array, dtype = as_numpy(W, name=name)
    check_matrix(array.shape, dtype, name)
    return _core.Matrix(array, dtype)


def check_matrix(shape: tuple[int, ...], dtype: str, name: str) -> None:
    """Raise unless an array of this shape and type can be viewed as a matrix; errors as `as_matrix`."""
    if dtype not in FLOATS:
        raise dtype_error(name, dtype, f"{name}.astype('float32')")
    if len(shape) != 2:
        advice = f"use {name}.reshape({name}.shape[0], -1)" if len(shape) > 2 else ""
        raise InvalidValueError(name, f"must be 2-D, but has shape {shape}", advice)
    if math.prod(shape) == 0:
        raise InvalidValueError(name, f"is empty: its shape is {shape}")


def as_numpy(W: Any, *, name: str = "W") -> tuple[NDArray[Any], str]:
    """View an array of any number of dimensions as NumPy, with the name of its storage type.

    bfloat16 comes back as the raw bits, uint16, since NumPy has no such type. Errors as `as_matrix`.
    """
    module = type(W).__module__.split(".")[0]
    refuse_masked(W, name)
    if isinstance(W, QuantisedArray):
        return W.decoded()
    if "torch" in sys.modules and isinstance(W, sys.modules["torch"].Tensor):
        array = _from_torch(W, name)
        dtype = str(W.dtype).removeprefix("torch.")
    else:
        array = np.asarray(W) if isinstance(W, np.ndarray) else _from_protocol(W, name, module)
        dtype = array.dtype.name
    if dtype not in FLOATS:
        raise dtype_error(name, dtype, f"{name}.astype('float32')")
    if not array.dtype.isnative:
        raise InvalidTypeError(name, "has foreign byte order", f"cast it, e.g. {name}.astype('{dtype}')")
    if not array.flags.aligned or any(stride % array.itemsize for stride in array.strides):
        raise InvalidValueError(name, f"is not aligned to its {dtype} entries", f"pass {name}.copy()")
    return (array.view(np.uint16) if dtype == "bfloat16" else array), dtype


def refuse_masked(array: Any, name: str) -> None:
    """Raise ValueError for a NumPy array with masked entries: what lies below the mask is no number to compute with."""
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        raise InvalidValueError(name, "is a masked array", f"fill it first, e.g. {name}.filled(0)")


def wide(array: NDArray[Any], dtype: str) -> NDArray[np.float64]:
    """Return the numbers that `as_numpy` gave, in float64; not a copy if they are that already."""
    return np.asarray(widened(array) if dtype == "bfloat16" else array, np.float64)


def as_wide(W: Any, *, name: str = "W") -> NDArray[np.float64]:
    """Return a floating-point array of any framework and dimension in float64; errors as `as_numpy`."""
    return wide(*as_numpy(W, name=name))


def on_host(array: Any) -> NDArray[Any]:
    """Return what a caller or `like` has left in a framework as NumPy, from the memory of a GPU too."""
    refuse_masked(array, "array")
    if hasattr(array, "detach"):  # PyTorch
        tensor = array.detach()
        if tensor.device.type == "meta":
            raise InvalidValueError("array", "is on the meta device and has no entries", "load it first")
        if str(tensor.layout) != "torch.strided":
            raise InvalidTypeError("array", "is a sparse torch tensor", "pass array.to_dense()")
        tensor = tensor.cpu()
        return np.asarray(tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor)
    if type(array).__module__.split(".")[0] == "cupy":
        return np.asarray(array.get())
    return np.asarray(array)


def boolean_mask(mask: Any, shape: tuple[int, ...], name: str) -> NDArray[np.bool_]:
    """Return a mask of any framework as a NumPy array; ValueError if it is not boolean or of another shape."""
    with argument_called(f"the mask of {name}", within="array"):
        array = on_host(mask)
    if array.shape != tuple(shape) or array.dtype != np.bool_:
        raise InvalidValueError(
            f"the mask of {name}", f"must be boolean of shape {tuple(shape)}, not {array.dtype} {array.shape}"
        )
    return array


def host_copy(W: Any) -> Any:
    """Return an array of PyTorch or CuPy in the memory of a GPU as one of the host; whatever else as it is."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(W, torch.Tensor):
        return W.detach().cpu() if W.device.type == "cuda" else W
    return W.get() if type(W).__module__.split(".")[0] == "cupy" else W


def in_storage(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return numbers as entries of a type by its name, rounded, bfloat16 by its bits; each ends at its largest.

    Numbers that are of that type already are not copied.
    """
    if dtype == "float16" or (dtype in LARGEST and values.dtype == np.float64):
        values = np.clip(values, -LARGEST[dtype], LARGEST[dtype])
    if dtype == "bfloat16":
        return narrowed(values)
    return values.astype(dtype, copy=False)


def native(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array in the machine's byte order and aligned to its entries: itself, or a copy of the same numbers."""
    if not array.dtype.isnative:
        return array.astype(array.dtype.newbyteorder("="))
    if not array.flags.aligned or any(stride % array.itemsize for stride in array.strides):
        return array.copy()
    return array


def dtype_error(name: str, dtype: str, cast: str) -> InvalidTypeError:
    """Return what to raise for entries of a type that has no kernels."""
    if dtype.startswith("complex"):
        return InvalidTypeError(
            name, f"has complex entries ({dtype})", f"a real matrix is needed: pass {name}.real, for one"
        )
    return InvalidTypeError(
        name, f"has dtype {dtype}", f"float64, float32, float16 or bfloat16 is needed: cast it, e.g. {cast}"
    )


def _from_torch(tensor: Any, name: str) -> NDArray[Any]:
    torch = sys.modules["torch"]
    if tensor.layout != torch.strided:
        raise InvalidTypeError(name, "is a sparse torch tensor", f"pass {name}.to_dense() or a SciPy sparse matrix")
    if tensor.device.type == "meta":
        raise InvalidValueError(name, "is on the meta device and has no entries", "load the weights first")
    if tensor.device.type != "cpu":
        raise _not_on_host(name, str(tensor.device), f"{name}.cpu()")
    tensor = tensor.detach()
    if tensor.is_neg():  # a lazily negated view, such as the imaginary part of a conjugate
        raise InvalidValueError(name, "is a negated view", f"pass {name}.resolve_neg()")
    if tensor.dtype == torch.bfloat16:
        # Any 16-bit integer type carries the bits; int16 exists in every version.
        return np.asarray(tensor.view(torch.int16).numpy()).view(np.uint16)
    if tensor.dtype in (torch.float64, torch.float32, torch.float16):
        return np.asarray(tensor.numpy())
    raise dtype_error(name, str(tensor.dtype).removeprefix("torch."), f"{name}.float()")


def _from_protocol(W: Any, name: str, module: str) -> NDArray[Any]:
    try:
        return _viewed(W, name, module)
    except (InputError, ImportError, MemoryError):
        raise
    except Exception as error:  # whatever a property or a method of a foreign object raises
        raise _unreadable(W, name, error) from error


def _viewed(W: Any, name: str, module: str) -> NDArray[Any]:
    if hasattr(W, "__cuda_array_interface__"):
        raise _not_on_host(name, "a GPU", "numpy.asarray(...) of a host copy")
    if hasattr(W, "__dlpack_device__"):
        kind = _dlpack_kind(W, name)
        if kind not in (1, 3):  # kDLCPU, kDLCUDAHost
            raise _not_on_host(name, "a GPU", f"a host copy of {name}")
    if module == "scipy":
        remedy = f"pass {name}.toarray()" if hasattr(W, "toarray") else "pass its entries as an array"
        raise InvalidTypeError(name, f"must be an array, not a SciPy {type(W).__name__}", remedy)
    if module == "pandas" and W.ndim == 2 and len(set(W.dtypes)) > 1:
        raise InvalidTypeError(name, "is a data frame of mixed types", f"pass {name}.to_numpy('float64')")
    if not isinstance(W, (list, tuple, type)):
        if is_buffer(W) or hasattr(W, "__array_struct__"):  # these NumPy prefers, and checks
            return _asarray(W, W, name)
        if hasattr(W, "__array_interface__"):
            return _asarray(HostRecord.of(W, name), W, name)
        if hasattr(W, "__array__"):
            return _asarray(W, W, name)
        if hasattr(W, "__dlpack__"):
            return _from_dlpack(W, name)
        for protocol in ("__array_interface__", "__array__", "__dlpack__"):
            if hasattr(type(W), protocol):  # its type has one, which raises where it is asked for
                getattr(W, protocol)
    raise InvalidTypeError(name, f"must be an array, not {type(W).__name__}", _advice(W, name))


def _advice(W: Any, name: str) -> str:
    """How to come by an array."""
    if callable(getattr(W, "named_parameters", None)) or callable(getattr(W, "get_weights", None)):
        for weight in ("weight", "kernel"):
            if getattr(W, weight, None) is not None:
                return f"pass {name}.{weight}"
        return "pass one of its weights, or the model to mpfast.analyze"
    return f"use numpy.asarray({name})"


def _asarray(view: Any, W: Any, name: str) -> NDArray[Any]:
    try:
        return np.asarray(view)
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        raise _unreadable(W, name, error) from error


def _unreadable(W: Any, name: str, error: Exception) -> UnreadableArrayError:
    return UnreadableArrayError(
        name, f"is a {type(W).__name__} that cannot be read as an array: {type(error).__name__}: {error}"
    )


def _dlpack_kind(W: Any, name: str) -> int:
    try:
        return int(W.__dlpack_device__()[0])
    except Exception as error:
        raise _unreadable(W, name, error) from error


def _from_dlpack(W: Any, name: str) -> NDArray[Any]:
    try:
        return np.from_dlpack(W)
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # BufferError and RuntimeError: a type that NumPy lacks, bfloat16 for one
        raise InvalidTypeError(
            name, f"cannot be read through DLPack ({error})", "cast it to float32 in its own framework"
        ) from error


def is_buffer(W: Any) -> bool:
    try:
        memoryview(W)
    except (TypeError, BufferError, ValueError):  # ValueError: NumPy's, of a type that buffers cannot name
        return False
    return True


def _not_on_host(name: str, where: str, remedy: str) -> InvalidValueError:
    return InvalidValueError(name, f"is on {where}, and this build cannot work there", f"pass {remedy}")


def like(result: NDArray[Any], prototype: Any) -> Any:
    """Hand a result back in the framework and on the device of ``prototype``, without a copy where that is possible."""
    module = type(prototype).__module__.split(".")[0]
    if "torch" in sys.modules and isinstance(prototype, sys.modules["torch"].Tensor):
        return sys.modules["torch"].from_numpy(result).to(prototype.device)
    if module == "cupy":
        with prototype.device:
            return sys.modules["cupy"].asarray(result)
    if module in ("jax", "jaxlib"):
        import jax.numpy as jnp

        return jnp.asarray(result)
    if module == "tensorflow":
        return sys.modules["tensorflow"].convert_to_tensor(result)
    if module == "mlx":
        return sys.modules["mlx.core"].array(result)
    return result


def like_stored(stored: NDArray[Any], dtype: str, prototype: Any) -> Any:
    """Hand entries back as `like` does, those of `as_numpy`'s form in the type of ``prototype``, bfloat16 too."""
    if dtype != "bfloat16":
        return like(stored, prototype)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(prototype, torch.Tensor):
        return torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16).to(prototype.device)
    return like(stored.view(np.asarray(prototype).dtype), prototype)


def raise_if_nonfinite(name: str, count: int, first: tuple[int, ...]) -> None:
    """Raise ValueError when ``count`` non-finite entries were seen, the first of them at index ``first``."""
    if count == 0:
        return
    entries = "entry" if count == 1 else "entries"
    raise InvalidValueError(
        name,
        f"has {count} non-finite {entries} (NaN or inf), the first at {first}",
        f"clean it first, e.g. numpy.nan_to_num({name})",
    )
