"""Results as notebooks show them: small tables in the design of the pages, without scripts, their texts escaped."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, TypeVar

from mpfast.support.json_records import printable

__all__ = ["design", "facts_as_html", "notebook_cell", "rows_as_html"]

Row = TypeVar("Row")

# As many rows as a screen shows; what follows is counted.
_ROWS_SHOWN = 40


@cache
def design(*parts: str) -> str:
    """Return the styles that pages and notebooks have in common, and these of this folder after them."""
    files = resources.files(__package__)
    return "".join((files / f"{part}.css").read_text(encoding="utf-8") for part in ("design", *parts))


def notebook_cell(*pieces: str) -> str:
    """Return pieces of HTML, one below the other, in the design of the pages."""
    return f'<div class="mpfast"><style>{design("notebook")}</style>{"".join(pieces)}</div>'


def rows_as_html(
    title: str, rows: Sequence[Row], columns: Mapping[str, Callable[[Row], str]], notes: Iterable[str] = ()
) -> str:
    """Return the first rows as a table below a title; `columns` says by heading what a row has in it.

    Examples
    --------
    >>> rows_as_html("one", ["a<b"], {"name": str}).partition("<tbody>")[2]
    '<tr><th>a&lt;b</th></tr></tbody></table></div>'
    """
    head = "".join(f"<th>{_text(name)}</th>" for name in columns)
    body = "".join(_line([cell(row) for cell in columns.values()]) for row in rows[:_ROWS_SHOWN])
    left = len(rows) - _ROWS_SHOWN
    more = (f"and {left:,} more",) if left > 0 else ()
    table = _table(f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>") if rows else ""
    return f"{_title(title)}{table}{_notes((*more, *notes))}"


def facts_as_html(title: str, facts: Mapping[str, str], notes: Iterable[str] = (), warnings: Iterable[str] = ()) -> str:
    """Return what is known of one thing, a line each, below a title; notes and warnings are paragraphs that follow.

    Examples
    --------
    >>> facts_as_html("W", {}, ["R&D"], ["NaN"])
    '<p class="title">W</p><p class="note">R&amp;D</p><p class="note">Warning: NaN</p>'
    """
    lines = "".join(map(_line, facts.items()))
    table = _table(f"<tbody>{lines}</tbody>") if facts else ""
    return f"{_title(title)}{table}{_notes((*notes, *(f'Warning: {text}' for text in warnings)))}"


def _title(text: str) -> str:
    return f'<p class="title">{_text(text)}</p>' if text else ""


def _table(content: str) -> str:
    return f'<div class="scroll"><table>{content}</table></div>'


def _notes(texts: Iterable[str]) -> str:
    return "".join(f'<p class="note">{_text(text)}</p>' for text in texts)


def _line(cells: Sequence[Any]) -> str:
    first, *others = (_text(cell) for cell in cells)
    return f"<tr><th>{first}</th>{''.join(f'<td>{cell}</td>' for cell in others)}</tr>"


def _text(text: str) -> str:
    return html.escape(printable(text))
