"""The order of the rows of a table, by a value of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

__all__ = ["in_order"]

Row = TypeVar("Row")


def in_order(rows: Iterable[Row], value: Callable[[Row], Any], *, reverse: bool = False) -> list[Row]:
    """Put rows in order by a value of each; equal ones keep their order.

    Texts go upwards, numbers downwards, shapes downwards by their entries; `reverse` turns that round. What is
    undefined, None or NaN, comes last either way.
    """
    keyed = [(value(row), row) for row in rows]
    known = [(_key(found), row) for found, row in keyed if not _is_undefined(found)]
    ordered = [row for _, row in sorted(known, key=lambda pair: pair[0], reverse=reverse)]
    return ordered + [row for found, row in keyed if _is_undefined(found)]


def _is_undefined(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _key(value: Any) -> Any:
    if isinstance(value, str):
        return value
    return -math.prod(value) if isinstance(value, tuple | list) else -value
