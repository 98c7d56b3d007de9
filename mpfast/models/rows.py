"""What results of whole models share: they are sequences of rows, and JSON documents."""

from __future__ import annotations

import difflib
import json
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar, overload

from mpfast.checkpoints import check_target
from mpfast.models.provenance import Provenance
from mpfast.support import MissingKeyError, check_path, front_door, notebook_cell, return_or_write, rows_as_html

__all__ = ["Named", "Rows", "json_text"]


class Named(Protocol):
    """What has a name."""

    @property
    def name(self) -> str:
        """What it is called."""


Row = TypeVar("Row", bound=Named)


class Rows(Sequence[Row]):
    """An immutable sequence of the rows of a result, each with a name; the result is one of its dataclasses."""

    provenance: Provenance | None

    @abstractmethod
    def _rows(self) -> tuple[Row, ...]:
        """Return the field that the rows are."""

    @overload
    def __getitem__(self, index: int | str) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice | str) -> Row | Sequence[Row]:
        if isinstance(index, str):
            return self._row_called(index)
        return self._rows()[index]

    def _row_called(self, name: str) -> Row:
        names = [row.name for row in self]
        if name in names:
            return self._rows()[names.index(name)]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
        advice = f"the nearest of {len(names)} is {near[0]!r}" if near else "there are no rows"
        raise MissingKeyError("", f"{name!r} is the name of no row", advice)

    def __contains__(self, row: object) -> bool:
        """Whether there is such a row, or a row of that name."""
        return any((one.name if isinstance(row, str) else one) == row for one in self)

    def __len__(self) -> int:
        return len(self._rows())

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows())

    @abstractmethod
    def _columns_shown(self) -> Mapping[str, Callable[[Row], str]]:
        """Return by heading what a notebook shows of a row."""

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return notebook_cell(self._as_html())

    def _as_html(self) -> str:
        return rows_as_html(repr(self), self, self._columns_shown(), self._notes_shown())

    def _notes_shown(self) -> tuple[str, ...]:
        """Return what a notebook says below the rows."""
        return ()

    @abstractmethod
    def _sources(self) -> tuple[str, ...]:
        """Return what the result was made from, as paths where it was files: they are not written over."""

    def _return_or_write(self, text: str, path: str | os.PathLike[str] | None) -> str | None:
        if path is not None:
            made = self.provenance
            reads = (*self._sources(), *((made.source, made.base) if made is not None else ()))
            check_target(check_path(path, "path"), reads=reads)
        return return_or_write(text, path)

    @abstractmethod
    def to_document(self) -> dict[str, Any]:
        """Return what `to_json` writes, as dictionaries and lists."""

    @overload
    def to_json(self, path: None = None) -> str: ...
    @overload
    def to_json(self, path: str | os.PathLike[str]) -> None: ...
    @front_door
    def to_json(self, path: str | os.PathLike[str] | None = None) -> str | None:
        """Return the result as JSON text, or write it to `path`, whole or not at all.

        NaN becomes ``null`` and an infinity the string ``"inf"`` or ``"-inf"``: JSON has neither.

        Raises
        ------
        OSError
            `path` cannot be written, or is what was read, or holds no text; the file is left as it was.
        """
        return self._return_or_write(json_text(self.to_document()), path)


def json_text(document: dict[str, Any]) -> str:
    """Return a document as JSON text; NaN and infinities are no part of it."""
    return json.dumps(document, indent=1, allow_nan=False) + "\n"
