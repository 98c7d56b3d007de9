"""Options that many functions share, checked in one way."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["check_seed", "thread_count"]


def thread_count(threads: Any, function: str) -> int:
    """Return the number of threads for the core, 0 for its default; ValueError unless a positive integer or None."""
    if threads is None:
        return 0
    if not isinstance(threads, (int, np.integer)) or threads < 1:
        raise ValueError(f"{function}(): threads must be a positive integer or None, not {threads!r}")
    return int(threads)


def check_seed(seed: Any, function: str) -> int:
    """Return the seed as a Python integer; ValueError unless it fits 64 bits without sign."""
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**64:
        raise ValueError(f"{function}(): seed must be an integer in [0, 2**64), not {seed!r}")
    return int(seed)
