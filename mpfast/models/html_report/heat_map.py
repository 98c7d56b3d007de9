"""A map of all layers: one cell per type and block, with the mean of what is there and how many layers that is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from mpfast.models.depth import by_place, depth_and_type
from mpfast.models.html_report.numbers import shortened
from mpfast.models.rows import Named

__all__ = ["Measure", "heat_map", "place_of"]

Row = TypeVar("Row", bound=Named)


@dataclass(frozen=True)
class Measure(Generic[Row]):
    """A number that every layer has.

    Attributes
    ----------
    name : str
        What a reader calls it.
    value : function
        From a row to the number; NaN where there is none.
    signed : bool
        Whether zero is its middle, as of a difference.
    """

    name: str
    value: Callable[[Row], float]
    signed: bool = False


def heat_map(rows: Sequence[Row], measures: Sequence[Measure[Row]]) -> dict[str, Any]:
    """Lay rows out by the type and the block that their names tell.

    Returns
    -------
    dict
        ``types`` and their short ``labels``; ``blocks``, the last one None if there are layers without a number;
        ``measures`` as {name, signed}; ``cells`` as [type, block, count, numbers], the first two being positions and
        the numbers one per measure: the value of a single layer, [mean, lowest, highest] of several, None where none is
        known.
    """
    places = by_place(rows)
    types = list(dict.fromkeys(kind for kind, _ in places))
    numbers = sorted({block for _, block in places if block is not None})
    blocks = [*numbers, *([None] if any(block is None for _, block in places) else [])]
    at_type, at_block = ({entry: at for at, entry in enumerate(entries)} for entries in (types, blocks))
    return {
        "types": types,
        "labels": short_types(types),
        "blocks": blocks,
        "measures": [{"name": measure.name, "signed": measure.signed} for measure in measures],
        "cells": [
            [at_type[kind], at_block[block], len(found), [_told(map(measure.value, found)) for measure in measures]]
            for (kind, block), found in places.items()
        ],
    }


def place_of(name: str, found: Mapping[str, Any]) -> list[int]:
    """Return the positions of a row of this name in the types and the blocks that `heat_map` found."""
    block, kind = depth_and_type(name)
    return [found["types"].index(kind), found["blocks"].index(block)]


def _told(values: Iterable[float]) -> float | list[float] | None:
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return None
    found = [float(np.mean(known)), min(known), max(known)]
    told: float | list[float] = shortened(found if len(known) > 1 else found[0], 4)
    return told


def short_types(types: Sequence[str]) -> list[str]:
    """Leave out what all types have in common: the end, and the beginning of those that carry a number.

    Examples
    --------
    >>> short_types(["model.layers.#.q.weight", "model.layers.#.k.weight", "head.weight"])
    ['q', 'k', 'head']
    """
    parts = [kind.split(".") for kind in types]
    head = _shared([part for part in parts if any("#" in word for word in part)])
    tail = _shared([part[::-1] for part in parts])
    short = [
        ".".join((part[head:] if kept else part)[: -tail or None])
        for part, kept in zip(parts, (any("#" in word for word in part) for part in parts), strict=True)
    ]
    return short if len(set(short)) == len(types) and all(short) else list(types)


def _shared(parts: Sequence[Sequence[str]]) -> int:
    """Count the words that all begin with, each keeping one of its own."""
    shared = 0
    if len(parts) > 1:
        for words in zip(*(part[:-1] for part in parts), strict=False):
            if len(set(words)) > 1:
                break
            shared += 1
    return shared
