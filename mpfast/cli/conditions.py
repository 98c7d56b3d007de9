"""Conditions on the columns of a result, ``COLUMN OP NUMBER``, under which a command fails."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer

__all__ = ["Condition", "conditions", "violations"]

_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_FORM = re.compile(r"\s*(\w+)\s*(>=|<=|==|!=|>|<)\s*(\S+)\s*")


@dataclass(frozen=True)
class Condition:
    """One condition.

    Attributes
    ----------
    column : str
        Of the JSON.
    operator : str
        ``>``, ``>=``, ``<``, ``<=``, ``==`` or ``!=``.
    number : float
        What the column is compared with.
    """

    column: str
    operator: str
    number: float

    def holds(self, value: Any) -> bool:
        """Whether a value meets the condition; what is no number, or undefined, meets none."""
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            return False
        return _OPERATORS[self.operator](value, self.number)

    def __str__(self) -> str:
        return f"{self.column} {self.operator} {self.number:g}"


def conditions(texts: Iterable[str] | None, columns: Sequence[str]) -> list[Condition]:
    """Read what ``--fail-on`` says; wrong usage where it is not of the form or names another column."""
    found = []
    for text in texts or ():
        parts = _FORM.fullmatch(text)
        number = None if parts is None else _number(parts[3])
        if parts is None or number is None:
            raise typer.BadParameter(f"--fail-on {text!r}: must be COLUMN OP NUMBER with one of {' '.join(_OPERATORS)}")
        if parts[1] not in columns:
            raise typer.BadParameter(f"--fail-on {text!r}: {parts[1]!r} is none of the columns {', '.join(columns)}")
        found.append(Condition(parts[1], parts[2], number))
    return found


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return None if number != number else number


def violations(wanted: Sequence[Condition], rows: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Say for each condition how many of the rows (name, columns) meet it, and which first."""
    listed = list(rows)
    told = []
    for condition in wanted:
        met = [(name, row[condition.column]) for name, row in listed if condition.holds(row.get(condition.column))]
        if met:
            name, value = met[0]
            more = f" and {len(met) - 1} more" if len(met) > 1 else ""
            told.append(f"{condition}: {name} has {value:.6g}{more}")
    return told
