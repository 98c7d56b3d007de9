"""Values of the columns of tables as they come back from JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mpfast.support import InvalidValueError, is_shape, is_text, short

__all__ = ["column_error", "converted", "count", "integers", "number", "text", "texts"]


def converted(column: str, value: Any, convert: Callable[[Any], Any]) -> Any:
    """Return a value of JSON as a column has it; InvalidValueError names the column whose value it cannot be."""
    try:
        return convert(value)
    except (TypeError, ValueError, OverflowError):
        raise column_error(column, value) from None


def column_error(column: str, value: Any) -> InvalidValueError:
    """Return the error that names a column and the value it cannot have."""
    return InvalidValueError("", f"the column {short(column)} cannot be {short(value)}")


def integers(values: Sequence[int]) -> tuple[int, ...]:
    """Return a shape as Python integers; TypeError or ValueError where it is none."""
    if isinstance(values, str | Mapping):
        raise TypeError("expected a sequence")
    shape = tuple(count(value) for value in values)
    if not is_shape(shape):
        raise ValueError("expected the extents of an array")
    return shape


def text(value: Any) -> str:
    """Return a text of JSON; TypeError where it is none."""
    if not is_text(value):
        raise TypeError("expected text")
    return str(value)


def texts(values: Sequence[str]) -> tuple[str, ...]:
    """Return a list of texts; TypeError where it is none."""
    if isinstance(values, str | Mapping):
        raise TypeError("expected a sequence")
    return tuple(text(value) for value in values)


def count(value: Any) -> int:
    """Return a whole number from 0; ValueError where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < 2**63:
        raise ValueError("expected a count")
    return int(value)


def number(value: Any) -> float:
    """Return a number of JSON, where infinities are text; TypeError where it is none."""
    if isinstance(value, str) and value in ("inf", "-inf"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError("expected a number")
    return float(value)
