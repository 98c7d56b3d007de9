"""Options that many functions share, checked in one way."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.support.errors import InvalidTypeError, InvalidValueError

__all__ = [
    "check_flag",
    "check_group",
    "check_path",
    "check_patterns",
    "check_seed",
    "check_sparsity",
    "check_tolerance",
    "float_array",
    "floor_count",
    "parsed_pattern",
    "positive_integer",
    "power_near",
    "team_size",
    "thread_count",
]

#: The longest group of an n:m pattern.
LARGEST_GROUP = 64
#: The most threads that anybody can mean.
LARGEST_TEAM = 1 << 16
_REAL = (int, float, np.integer, np.floating)


def _is_real(value: Any) -> bool:
    return isinstance(value, _REAL) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def float_array(value: Any, name: str) -> NDArray[np.float64]:
    """Return real numbers, of any shape, as float64; TypeError for anything else."""
    try:
        given = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise InvalidTypeError(name, f"must be an array of real numbers: {error}") from error
    if given.dtype.kind not in "fiu":
        raise InvalidTypeError(name, f"must be an array of real numbers, not {given.dtype}")
    return given.astype(np.float64)


def positive_integer(value: Any, name: str, *, optional: bool = True) -> int:
    """Return ``value`` as a Python integer; ValueError unless it is one of at least 1. An optional one may be None."""
    if not _is_integer(value) or value < 1:
        raise InvalidValueError(name, f"must be a positive integer{' or None' * optional}, not {value!r}")
    return int(value)


def thread_count(threads: Any) -> int:
    """Return the number of threads for the core, 0 for its default; ValueError unless a positive integer or None."""
    return 0 if threads is None else _team(threads, "threads")


def team_size(threads: Any) -> int:
    """Return the number of threads in all, by default every core; ValueError unless a positive integer or None."""
    return _core.default_threads() if threads is None else _team(threads, "threads")


def _team(value: Any, name: str) -> int:
    size = positive_integer(value, name)
    if size > LARGEST_TEAM:
        raise InvalidValueError(name, f"must be at most {LARGEST_TEAM}, not {value!r}")
    return size


def check_flag(value: Any, name: str) -> bool:
    """Return ``value``; TypeError unless it is True or False: of other values it is not plain what they mean."""
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidTypeError(name, f"must be True or False, not {value!r}")
    return bool(value)


def check_path(value: Any, name: str) -> str:
    """Return the text of a path.

    Raises
    ------
    InvalidTypeError
        It is no path, or one of bytes.
    InvalidValueError
        It is empty or has a NUL in it, which no system takes.
    """
    if isinstance(value, str | os.PathLike):
        text = os.fspath(value)
        if isinstance(text, str):
            if not text:
                raise InvalidValueError(name, "is an empty path", "name a file or a directory")
            if "\0" in text:
                raise InvalidValueError(name, f"has a NUL in it, which no path can have: {text!r}")
            return text
        value = text
    advice = "os.fsdecode makes text of it" if isinstance(value, bytes) else ""
    raise InvalidTypeError(name, f"must be a path (str or os.PathLike), not {type(value).__name__}", advice)


def check_patterns(value: Any, name: str) -> list[str]:
    """Return glob patterns, of which one may be given by itself, as a list; TypeError for anything else."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, Iterable) or isinstance(value, bytes | bytearray):
        raise InvalidTypeError(name, f"must be a glob pattern or several, not {type(value).__name__}")
    patterns = list(value)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise InvalidTypeError(name, f"takes glob patterns, which are text, not {type(pattern).__name__}")
    return patterns


def check_tolerance(tol: Any, name: str = "tol") -> float:
    """Return the tolerance as a Python float; ValueError unless it is a number strictly between 0 and 1."""
    if not _is_real(tol) or not 0 < tol < 1:
        raise InvalidValueError(name, f"must be between 0 and 1, not {tol!r}")
    return float(tol)


def check_sparsity(sparsity: Any, name: str = "sparsity") -> float:
    """Return the sparsity, or another share, as a Python float; ValueError unless it is a number in [0, 1]."""
    if not _is_real(sparsity) or not 0 <= sparsity <= 1:
        raise InvalidValueError(name, f"must lie in [0, 1], not {sparsity!r}")
    return float(sparsity)


def check_group(n: Any, m: Any) -> None:
    """Raise ValueError unless n of every m entries can stay: integers with ``1 <= n <= m <= 64``."""
    integers = _is_integer(n) and _is_integer(m)
    if not (integers and 1 <= n <= m <= LARGEST_GROUP):
        raise InvalidValueError("", f"1 <= n <= m <= {LARGEST_GROUP} is needed, got n={n!r}, m={m!r}")


def parsed_pattern(text: str) -> tuple[int, int] | None:
    """Return n and m of a pattern ``n:m`` that keeps n of every m entries; None unless ``1 <= n < m <= 64``.

    With n = m nothing would go, and what is called pruned would be a copy.
    """
    found = re.fullmatch("([0-9]{1,2}):([0-9]{1,2})", text) if isinstance(text, str) else None
    if found is None or not 1 <= int(found[1]) < int(found[2]) <= LARGEST_GROUP:
        return None
    return int(found[1]), int(found[2])


def check_seed(seed: Any) -> int:
    """Return the seed as a Python integer; ValueError unless it fits 64 bits without sign."""
    if not _is_integer(seed) or not 0 <= seed < 2**64:
        raise InvalidValueError("seed", f"must be an integer in [0, 2**64), not {seed!r}")
    return int(seed)


def power_near(number: float) -> float:
    """Return the power of two next above a positive number, and 1 for 0; none whose inverse overflows."""
    return 2.0 ** max(-1000, min(1000, math.frexp(number)[1])) if number > 0 else 1.0


def floor_count(sparsity: float, total: int) -> int:
    """``floor(sparsity * total)``, unharmed by the rounding of decimals: 0.3 of 10 is 3."""
    return min(total, math.floor(sparsity * total * (1 + 2.0**-50)))
