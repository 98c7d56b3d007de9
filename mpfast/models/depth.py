"""Where in a model a layer stands, as far as its name tells: the places of heat maps."""

from __future__ import annotations

import re

__all__ = ["depth_and_type"]

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
