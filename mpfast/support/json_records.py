"""JSON that others wrote: parsed strictly, and read field by field, so that an error names the field."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mpfast.support.checks import check_path
from mpfast.support.errors import InvalidValueError

__all__ = [
    "MAX_DIMENSIONS",
    "Record",
    "RepeatedKeyError",
    "is_shape",
    "is_text",
    "no_constant",
    "parse_json",
    "printable",
    "read_document",
    "short",
    "storage_bits",
    "unique_keys",
]

# NumPy 1 has no arrays of more dimensions.
MAX_DIMENSIONS = 32


class RepeatedKeyError(ValueError):
    """An object of a JSON text has a key twice."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {short(key)} occurs twice")
        self.key = key


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object that the pairs form; json's default would keep the last of a repeated key."""
    unique = dict(pairs)
    if len(unique) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise RepeatedKeyError(key)
            seen.add(key)
    return unique


def no_constant(text: str) -> Any:
    """Refuse NaN and infinities, which json lets pass."""
    raise ValueError(f"{text} is not JSON")


def parse_json(text: str | bytes) -> Any:
    """Return what a JSON text says; ValueError where it is none, nests too deeply or repeats a key."""
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        return json.loads(decoded, object_pairs_hook=unique_keys, parse_constant=no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_document(source: str | os.PathLike[str], schema: str) -> Record:
    """Return the object of this schema that a JSON text, which starts with ``{``, or else a file holds.

    Raises
    ------
    ValueError
        The text is no JSON, or not of this schema.
    OSError
        The file cannot be read.
    """
    is_document = isinstance(source, str) and source.lstrip().startswith("{")
    if not is_document:
        check_path(source, "source")
    try:
        document = parse_json(str(source) if is_document else Path(source).read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise InvalidValueError("", str(error)) from None
    if not isinstance(document, dict) or document.get("schema") != schema:
        own = document.get("schema") if isinstance(document, dict) else None
        but = f", but of {short(own)}" if is_text(own) else ""
        raise InvalidValueError("", f"this is not JSON of the schema {schema}{but}")
    return Record(document, f"the {schema.partition('/')[0].rpartition('.')[2]}")


def printable(text: str) -> str:
    r"""`text` with control characters escaped: names come from files, and terminals obey escape sequences.

    Examples
    --------
    >>> print(printable("a\x1b[2Jb"))
    a\x1b[2Jb
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def is_text(value: Any) -> bool:
    """Tell whether `value` is a string without lone surrogates, which JSON can spell but no text holds."""
    if not isinstance(value, str):
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def is_shape(value: Any) -> bool:
    """Tell whether `value` is a list or tuple of non-negative integers, as many as NumPy has dimensions at most."""
    return (
        isinstance(value, list | tuple)
        and len(value) <= MAX_DIMENSIONS
        and all(type(extent) is int and extent >= 0 for extent in value)
    )


def storage_bits(shape: tuple[int, ...] | list[int], bits: int) -> int | None:
    """Return how many bits an array takes; None where that, or any of its strides, overflows 63 bits.

    Zero extents count as one in the test: (2**62, 2**62, 0) holds nothing, but overflows whatever computes its strides.
    """
    if shape and max(shape) >= 2**63:  # before the product, which huge factors would make slow
        return None
    if math.prod([extent or 1 for extent in shape]) * bits >= 2**63:
        return None
    return math.prod(shape) * bits


def short(value: Any) -> str:
    """`value` as text, cut where a hostile file would fill the screen; Python may refuse huge or deeply nested ones."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return "something huge"
    return text if len(text) <= 80 else text[:77] + "..."


class Record:
    """An object of a JSON document, read field by field; every getter raises ValueError that names the field.

    Parameters
    ----------
    value : Any
        What should be the object.
    where : str
        What it is, for messages.
    """

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            raise InvalidValueError(where, f"must be an object, not {short(value)}")
        self._value = value
        self._where = where

    def get(self, field: str) -> Any:
        """Return a field as it is."""
        if field not in self._value:
            raise InvalidValueError(self._where, f"lacks the field {field!r}")
        return self._value[field]

    def __iter__(self) -> Iterator[str]:
        return iter(self._value)

    def has(self, field: str) -> bool:
        """Whether a field is there and not null."""
        return self._value.get(field) is not None

    def refuse(self, field: str, what: str) -> InvalidValueError:
        """Return what to raise for a field that should be `what`."""
        return InvalidValueError(f"{self._where}: {field}", f"must be {what}, not {short(self._value.get(field))}")

    def allow(self, fields: set[str]) -> None:
        """Raise for a field that is none of `fields`."""
        unknown = sorted(str(key) for key in self._value if key not in fields)
        if unknown:
            raise InvalidValueError(self._where, f"has the unknown field {short(unknown[0])}")

    def text(self, field: str) -> str:
        """Return a string."""
        value = self.get(field)
        if not is_text(value):
            raise self.refuse(field, "text")
        return str(value)

    def optional_text(self, field: str) -> str | None:
        """Return a string, or None where the field is missing or null."""
        return self.text(field) if self.has(field) else None

    def integer(self, field: str, least: int = 0) -> int:
        """Return an integer of at least `least` that fits 64 bits."""
        value = self.get(field)
        if type(value) is not int or not least <= value < 2**64:
            raise self.refuse(field, f"an integer of at least {least}")
        return value

    def number(self, field: str, low: float = -math.inf, high: float = math.inf) -> float:
        """Return a number of an interval; NaN is refused."""
        value = self.get(field)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.refuse(field, "a number" if high == math.inf > -low else f"a number in [{low:g}, {high:g}]")
        try:
            return float(value)
        except OverflowError:
            raise self.refuse(field, "a number that float64 holds") from None

    def optional_number(self, field: str, low: float = -math.inf) -> float | None:
        """Return a number, or None where the field is missing or null."""
        return self.number(field, low) if self.has(field) else None

    def flag(self, field: str) -> bool:
        """Return a truth value."""
        value = self.get(field)
        if not isinstance(value, bool):
            raise self.refuse(field, "true or false")
        return value

    def measured(self, field: str) -> float:
        """Return a number that may be NaN or infinite, as Python's json writes and reads them."""
        value = self.get(field)
        return value if isinstance(value, float) and math.isnan(value) else self.number(field)

    def numbers(self, field: str, low: float = -math.inf) -> list[float]:
        """Return a list of finite numbers of at least `low`."""
        value = self.get(field)
        if not isinstance(value, list) or not all(
            type(entry) in (int, float) and low <= entry <= sys.float_info.max for entry in value
        ):
            raise self.refuse(field, "a list of finite numbers" + (f" of at least {low:g}" if low > -math.inf else ""))
        return [float(entry) for entry in value]

    def texts(self, field: str) -> tuple[str, ...]:
        """Return a list of strings."""
        value = self.get(field)
        if not isinstance(value, list | tuple) or not all(map(is_text, value)):
            raise self.refuse(field, "a list of texts")
        return tuple(value)

    def shape(self, field: str, *, least: int = 0) -> tuple[int, ...]:
        """Return a shape, of at least `least` dimensions, whose number of entries fits 63 bits."""
        value = self.get(field)
        if not is_shape(value) or len(value) < least or storage_bits(value, 1) is None:
            raise self.refuse(field, "a shape: non-negative integers")
        return tuple(value)

    def matrix_shape(self, field: str) -> tuple[int, int]:
        """Return the shape of a matrix that has entries."""
        shape = self.shape(field)
        if len(shape) != 2 or 0 in shape:
            raise self.refuse(field, "the two positive extents of a matrix")
        return shape[0], shape[1]

    def record(self, field: str) -> Record:
        """Return an object."""
        return Record(self.get(field), f"{self._where}: {field}")

    def records(self, field: str) -> list[Record]:
        """Return a list of objects."""
        value = self.get(field)
        if not isinstance(value, list):
            raise self.refuse(field, "a list")
        return [Record(entry, f"{self._where}: {field}[{index}]") for index, entry in enumerate(value)]
