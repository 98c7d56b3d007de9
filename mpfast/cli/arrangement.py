"""Which rows of a table are shown, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from mpfast.models import in_order

__all__ = ["Arrangement"]

Row = TypeVar("Row")


@dataclass(frozen=True)
class Arrangement:
    """What ``--sort``, ``--reverse`` and ``--top`` say.

    Attributes
    ----------
    sort : str or None
        The column to go by; None leaves the order.
    reverse : bool
        Whether the order is turned round.
    top : int or None
        How many rows are shown; None shows all.
    """

    sort: str | None = None
    reverse: bool = False
    top: int | None = None

    def ordered(self, rows: Sequence[Row], value: Callable[[Row, str], Any] = getattr) -> list[Row]:
        """Return all rows in their order; `value` says what a row has in a column."""
        column = self.sort
        if column is not None:
            return in_order(rows, lambda row: value(row, column), reverse=self.reverse)
        return list(rows)[::-1] if self.reverse else list(rows)

    def shown(self, rows: Sequence[Row], value: Callable[[Row, str], Any] = getattr) -> list[Row]:
        """Return the rows that are shown."""
        return self.ordered(rows, value)[: self.top]

    def left_out(self, rows: Sequence[Any]) -> str:
        """Say how many of the rows are shown; nothing where all are."""
        return f"the first {self.top} of {len(rows)} rows" if self.top is not None and self.top < len(rows) else ""
