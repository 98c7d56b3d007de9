"""Memory that was freed, given back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator

__all__ = ["arrays_given_back", "give_back_freed_memory"]

# Parameters of glibc's mallopt: from how many bytes on an array is memory of its own, which goes when it is freed.
_M_MMAP_THRESHOLD = -3
_APART = 256 << 10
# Where that ends up by itself once an array of this size was freed: glibc raises it no further.
_LARGEST_SHARED = 32 << 20

_lock = threading.Lock()
_inside = 0


def give_back_freed_memory() -> None:
    """Have the C library give freed pages back, where it can: glibc keeps those of arrays below 32 MiB for later."""
    _call("malloc_trim", 0)


@contextlib.contextmanager
def arrays_given_back() -> Iterator[None]:
    """Have every array from 256 KiB on give its memory back at once when it is freed, for all of the process.

    Otherwise glibc keeps the memory of smaller ones than 32 MiB, and holes between those that are left. Where the
    environment sets a threshold (``MALLOC_MMAP_THRESHOLD_``), that stays.
    """
    _count(+1)
    try:
        yield
    finally:
        _count(-1)


def _count(change: int) -> None:
    """Count who is inside: the first one in and the last one out change the threshold."""
    global _inside
    with _lock:
        _inside += change
        is_set = any("mmap_threshold" in f"{name}={value}".lower() for name, value in os.environ.items())
        if not is_set and (_inside, change) in ((1, +1), (0, -1)):
            _call("mallopt", _M_MMAP_THRESHOLD, _APART if change > 0 else _LARGEST_SHARED)


def _call(name: str, *arguments: int) -> None:
    """Call a function of glibc; nothing happens where there is another C library."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            getattr(ctypes.CDLL(None), name)(*arguments)
