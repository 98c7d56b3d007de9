"""Results as notebooks show them: small tables without scripts or colours, their texts escaped."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from mpfast.support.json_records import printable

__all__ = ["facts_as_html", "rows_as_html"]

Row = TypeVar("Row")

# As many rows as a screen shows; what follows is counted.
_ROWS_SHOWN = 40


def rows_as_html(title: str, rows: Sequence[Row], columns: Mapping[str, Callable[[Row], str]]) -> str:
    """Return the first rows as a table below a title; `columns` says by heading what a row has in it.

    Examples
    --------
    >>> rows_as_html("one", ["a<b"], {"name": str})
    '<p>one</p><table><thead><tr><th>name</th></tr></thead><tbody><tr><th>a&lt;b</th></tr></tbody></table>'
    """
    head = "".join(f"<th>{_text(name)}</th>" for name in columns)
    body = "".join(_line([cell(row) for cell in columns.values()]) for row in rows[:_ROWS_SHOWN])
    left = len(rows) - _ROWS_SHOWN
    more = f"<p>and {left:,} more</p>" if left > 0 else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if rows else ""
    return f"<p>{_text(title)}</p>{table}{more}"


def facts_as_html(title: str, facts: Mapping[str, str], notes: Iterable[str] = ()) -> str:
    """Return what is known of one thing, a line each, below a title; `notes` are paragraphs that follow.

    Examples
    --------
    >>> facts_as_html("W", {"rank": "3"}, ["R&D"])
    '<p>W</p><table><tbody><tr><th>rank</th><td>3</td></tr></tbody></table><p>R&amp;D</p>'
    """
    body = "".join(_line(entry) for entry in facts.items())
    paragraphs = "".join(f"<p>{_text(note)}</p>" for note in notes)
    return f"<p>{_text(title)}</p><table><tbody>{body}</tbody></table>{paragraphs}"


def _line(cells: Sequence[Any]) -> str:
    first, *others = (_text(cell) for cell in cells)
    return f"<tr><th>{first}</th>{''.join(f'<td>{cell}</td>' for cell in others)}</tr>"


def _text(text: str) -> str:
    return html.escape(printable(text))
