"""Masks that are written into arrays of the caller's: memory that is there already costs no new pages."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import is_on_gpu
from mpfast.support import InvalidTypeError, InvalidValueError

__all__ = ["check_device_mask", "host_mask"]


def host_mask(out: Any, weight: NDArray[Any], name: str) -> NDArray[np.bool_]:
    """Return an array for the mask of a weight in host memory: ``out`` as NumPy sees it, or a new one if that is None.

    Raises
    ------
    TypeError
        ``out`` is neither a NumPy array nor a PyTorch tensor in host memory.
    ValueError
        It is not boolean, of another shape, has gaps, may not be written, or shares memory with the weight.
    """
    if out is None:
        return np.empty(weight.shape, dtype=np.bool_)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(out, torch.Tensor):
        if out.device.type != "cpu":
            raise InvalidTypeError(name, f"is on {out.device}, the weights are in host memory")
        view: NDArray[Any] = out.detach().numpy()
    elif type(out) is np.ndarray:
        view = out
    else:
        raise InvalidTypeError(name, f"must be a NumPy array or a PyTorch tensor, not {type(out).__name__}")
    _check(tuple(view.shape), str(view.dtype), view.flags.c_contiguous, weight.shape, name)
    if not view.flags.writeable:
        raise InvalidValueError(name, "may not be written")
    if np.may_share_memory(view, weight):
        raise InvalidValueError(name, "shares memory with the weights")
    return view


def check_device_mask(out: Any, weight: Any, name: str) -> None:
    """Raise unless ``out`` can take the mask of a weight on a GPU; errors as `host_mask`."""
    if type(out).__module__.split(".")[0] != type(weight).__module__.split(".")[0] or not is_on_gpu(out):
        raise InvalidTypeError(name, "must be an array of the weights' framework, on their GPU")
    here, there = (str(getattr(array, "device", "")) for array in (out, weight))
    if here != there:
        raise InvalidTypeError(name, f"is on {here}, the weights are on {there}")
    flags = getattr(out, "flags", None)
    contiguous = out.is_contiguous() if flags is None else flags.c_contiguous
    _check(tuple(out.shape), str(out.dtype).removeprefix("torch."), contiguous, tuple(weight.shape), name)


def _check(shape: tuple[int, ...], dtype: str, contiguous: bool, wanted: tuple[int, ...], name: str) -> None:
    if shape != wanted or dtype != "bool":
        raise InvalidValueError(name, f"must be boolean of shape {wanted}, not {dtype} {shape}")
    if not contiguous:
        raise InvalidValueError(name, "must be C-contiguous")
