"""Conditions on the columns of a result, ``COLUMN OP VALUE``, under which a command fails."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from mpfast.cli.columns import Columns

__all__ = ["Condition", "conditions", "violations"]

_OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_EQUALITY = ("==", "!=")
_FORM = re.compile(r"""\s*(\w+)\s*(>=|<=|==|!=|>|<)\s*("[^"]*"|'[^']*'|\S+)\s*""")


@dataclass(frozen=True)
class Condition:
    """One condition.

    Attributes
    ----------
    column : str
        Of the JSON.
    operator : str
        ``>``, ``>=``, ``<``, ``<=``, ``==`` or ``!=``.
    value : float or str
        What the column is compared with.
    ladder : tuple of str
        The order of the words.
    """

    column: str
    operator: str
    value: float | str
    ladder: tuple[str, ...] = ()

    def holds(self, found: Any) -> bool:
        """Whether a value meets the condition; one of another kind, undefined, or off the ladder, meets none."""
        if isinstance(self.value, str):
            return isinstance(found, str) and self._holds_for_word(found, self.value)
        if isinstance(found, bool) or not isinstance(found, int | float) or found != found:
            return False
        return _OPERATORS[self.operator](found, self.value)

    def _holds_for_word(self, found: str, wanted: str) -> bool:
        if self.operator in _EQUALITY:
            return _OPERATORS[self.operator](found, wanted)
        places = [self.ladder.index(word) for word in (found, wanted) if word in self.ladder]
        return len(places) == 2 and _OPERATORS[self.operator](*places)

    def __str__(self) -> str:
        return f"{self.column} {self.operator} {_text(self.value)}"


def conditions(texts: Iterable[str] | None, columns: Columns) -> list[Condition]:
    """Read what ``--fail-on`` says; wrong usage where a text is not of the form, or asks what no row can answer."""
    return [_condition(text, columns) for text in texts or ()]


def _condition(text: str, columns: Columns) -> Condition:
    parts = _FORM.fullmatch(text)
    if parts is None:
        raise _wrong(text, f"must be COLUMN OP VALUE with one of {' '.join(_OPERATORS)}")
    column, sign, value = parts[1], parts[2], parts[3]
    if column in columns.numbers:
        number = _number(value)
        if number is None:
            raise _wrong(text, f"{column} is compared with a number, not {value}")
        return Condition(column, sign, number)
    if column not in columns.words:
        raise _wrong(text, f"{column!r} is none of the columns {', '.join([*columns.numbers, *columns.words])}")
    word, can = value.strip("\"'"), columns.words[column]
    if sign not in _EQUALITY and not can.ladder:
        raise _wrong(text, f"{column} is a word, which is tested with == and !=")
    known = can.known if sign in _EQUALITY else can.ladder
    if known and word not in known:
        raise _wrong(text, f"{column} {sign} takes one of {', '.join(known)}, not {word!r}")
    return Condition(column, sign, word, can.ladder)


def _wrong(text: str, why: str) -> typer.BadParameter:
    return typer.BadParameter(f"--fail-on {text!r}: {why}")


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return None if number != number else number


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"


def violations(wanted: Sequence[Condition], rows: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Say for each condition how many of the rows (name, columns) meet it, and which first."""
    listed = list(rows)
    told = []
    for condition in wanted:
        met = [(name, row[condition.column]) for name, row in listed if condition.holds(row.get(condition.column))]
        if met:
            name, found = met[0]
            more = f" and {len(met) - 1} more" if len(met) > 1 else ""
            told.append(f"{condition}: {name} has {_text(found)}{more}")
    return told
