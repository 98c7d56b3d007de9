"""Where in a model a layer stands, as far as its name tells: the places of heat maps."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeVar

from mpfast.models.rows import Named

__all__ = ["by_place", "depth_and_type"]

Row = TypeVar("Row", bound=Named)

_NUMBER = re.compile(r"\d+")
# A longer number is no depth; Python refuses to read one of thousands of digits.
_MAX_DIGITS = 9


def depth_and_type(name: str) -> tuple[int | None, str]:
    """Return the first number in a name, None where there is none, and the name with # for every number.

    Examples
    --------
    >>> depth_and_type("layers.3.experts.7.up"), depth_and_type("lm_head")
    ((3, 'layers.#.experts.#.up'), (None, 'lm_head'))
    """
    found = _NUMBER.search(name)
    depth = int(found[0]) if found and len(found[0]) <= _MAX_DIGITS else None
    return depth, _NUMBER.sub("#", name)


def by_place(rows: Iterable[Row]) -> dict[tuple[str, int | None], list[Row]]:
    """Return rows by their type and depth, in their order."""
    places: dict[tuple[str, int | None], list[Row]] = {}
    for row in rows:
        depth, kind = depth_and_type(row.name)
        places.setdefault((kind, depth), []).append(row)
    return places
