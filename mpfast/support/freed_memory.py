"""Memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["give_back_freed_memory"]


def give_back_freed_memory() -> None:
    """Have the C library give freed pages back, where it can: glibc keeps those of arrays below 32 MiB for later."""
    if sys.platform == "linux":
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except (OSError, AttributeError):  # another C library
            return
