"""Arrays of any framework as views that the native core can read, and back; nothing is copied."""

from mpfast.arrays.bfloat16 import narrowed, widened
from mpfast.arrays.devices import (
    Device,
    address_of,
    cuda_backend,
    cuda_status,
    device_matrix,
    device_names,
    has_cuda_backend,
    is_on_gpu,
    parse_device,
)
from mpfast.arrays.views import (
    FLOATS,
    as_bits,
    as_matrix,
    as_numpy,
    as_wide,
    check_matrix,
    dtype_error,
    like,
    native,
    on_host,
    raise_if_nonfinite,
    wide,
)

__all__ = [
    "FLOATS",
    "Device",
    "address_of",
    "as_bits",
    "as_matrix",
    "as_numpy",
    "as_wide",
    "check_matrix",
    "cuda_backend",
    "cuda_status",
    "device_matrix",
    "device_names",
    "dtype_error",
    "has_cuda_backend",
    "is_on_gpu",
    "like",
    "narrowed",
    "native",
    "on_host",
    "parse_device",
    "raise_if_nonfinite",
    "wide",
    "widened",
]
