"""Numbers as short as a page needs them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["shortened"]


def shortened(value: Any, digits: int) -> Any:
    """Return `value` with all numbers in it rounded to so many significant digits; it is what JSON can hold.

    Examples
    --------
    >>> shortened({"a": [0.123456789, 7, None]}, 3)
    {'a': [0.123, 7, None]}
    """
    if isinstance(value, Mapping):
        return {key: shortened(entry, digits) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [shortened(entry, digits) for entry in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value
