"""Options that many functions share, checked in one way."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["check_seed", "positive_integer", "thread_count"]


def positive_integer(value: Any, name: str, function: str) -> int:
    """Return ``value`` as a Python integer; ValueError unless it is an integer of at least 1."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{function}(): {name} must be a positive integer or None, not {value!r}")
    return int(value)


def thread_count(threads: Any, function: str) -> int:
    """Return the number of threads for the core, 0 for its default; ValueError unless a positive integer or None."""
    return 0 if threads is None else positive_integer(threads, "threads", function)


def check_seed(seed: Any, function: str) -> int:
    """Return the seed as a Python integer; ValueError unless it fits 64 bits without sign."""
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**64:
        raise ValueError(f"{function}(): seed must be an integer in [0, 2**64), not {seed!r}")
    return int(seed)
